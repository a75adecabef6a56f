"""A fingerprint in words, for two people to compare on the telephone.

Each 16 bits are one word of five letters, consonants and vowels in turn, as in Wilkerson's proquints
(arXiv:0901.4016): short to say, and no list of words is needed. Five words are 80 bits, which nobody meets by trying.
"""

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"
COUNT = 5


def words(fingerprint: str) -> str:
    """Return the first 80 bits of a fingerprint (hex) as five words, with hyphens between."""
    first = bytes.fromhex(fingerprint)[: 2 * COUNT]
    return "-".join(_word(int.from_bytes(first[start : start + 2])) for start in range(0, 2 * COUNT, 2))


def same(said: str, meant: str) -> bool:
    """Tell whether words that were said are those that were meant, whatever stands between them."""
    return letters(said) == letters(meant)


def letters(said: str) -> str:
    """Return the letters of words, without what stands between them."""
    return "".join(filter(str.isalpha, said.lower()))


def _word(bits: int) -> str:
    letters = []
    for shift, alphabet in ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS)):
        letters.append(alphabet[(bits >> shift) & (len(alphabet) - 1)])
    return "".join(letters)
