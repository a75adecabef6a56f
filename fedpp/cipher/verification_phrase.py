"""Verification phrase: the pronounceable form of a fingerprint, for two people to compare on the telephone.

Each 16 bits are one word of five letters, consonants and vowels in turn, as in Wilkerson's proquints
(arXiv:0901.4016): short to say, without a list of words. Its five proquints are 80 bits, too many to match by trying.
"""

_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"
COUNT = 5  # words


def phrase(fingerprint: str) -> str:
    """Return the first 80 bits of a fingerprint (hex) as five proquints, joined by hyphens."""
    first = bytes.fromhex(fingerprint)[: 2 * COUNT]
    return "-".join(_word(int.from_bytes(first[start : start + 2])) for start in range(0, 2 * COUNT, 2))


def same_phrase(given: str, expected: str) -> bool:
    """Tell whether two phrases have the same letters, whatever stands between the words."""
    return letters(given) == letters(expected)


def letters(given: str) -> str:
    """Return the letters of a phrase, in lower case, without what stands between them."""
    return "".join(filter(str.isalpha, given.lower()))


def _word(bits: int) -> str:
    word = ""
    for shift, alphabet in ((12, _CONSONANTS), (10, _VOWELS), (6, _CONSONANTS), (4, _VOWELS), (0, _CONSONANTS)):
        word += alphabet[(bits >> shift) & (len(alphabet) - 1)]
    return word
