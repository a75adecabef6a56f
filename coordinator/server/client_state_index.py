"""Which states the sites hold, as far as they said so: those need not be sent to them again."""

from .answers import UNKNOWN


class Holdings:
    """Digests of states, by site and round."""

    def __init__(self) -> None:
        """Begin with nothing, as a coordinator that goes on does: a site that has a state is sent it once more."""
        self._held: dict[tuple[str, int], str] = {}

    def name(self, site: str, number: int, digest: str) -> None:
        """Take it that a site holds this state of a round."""
        self._held[site, number] = digest

    def base(self, site: str, number: int, digest: str) -> str:
        """Return by which digest a site knows the state of a round, or nothing if it must be sent it.

        Of the first one, sealed, the coordinator itself does not know the digest.
        """
        held = self._held.get((site, number), "")
        return held if digest in {held, UNKNOWN} else ""

    def forget(self, site: str) -> bool:
        """Take it that a site holds nothing; tell whether it was taken to hold something."""
        lost = [held for held in self._held if held[0] == site]
        for held in lost:
            del self._held[held]
        return bool(lost)

    def prune(self, number: int) -> None:
        """Forget what was before this round."""
        self._held = {(site, of): digest for (site, of), digest in self._held.items() if of >= number}
