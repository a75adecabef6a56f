"""Reasons why a file of raw data is not read, and doubts about what was read; both name no file and no patient."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a file or folder is refused or passed over; the text is shown with a count."""

    CLOSED = "cannot be opened or listed"
    LINK = "link that is not followed"
    MISSING = "missing, though a table names it"
    EMPTY = "folder without an image"
    DAMAGED = "damaged or cut"
    TOO_LARGE = "larger than the limits"
    NO_DECODER = "of a form that is not decoded"
    DEPTH = "of another depth of grey than the images beside it"
    NO_HEADER = "DICOM without its header or transfer syntax"
    GREY = "with unusable tags on grey values"
    NO_PATIENT = "without a patient"
    NO_TIME = "without a time, which others of its sequence have"
    REPEATED = "image of a name that another one has"
    SAME_UID = "with another image's SOPInstanceUID"
    UNKNOWN_TYPE = "named as no known type"
    UNLISTED = "named by no line of its table"
    DANGLING = "link to nothing"
    REFUSED = "not read, since all of the data were refused"
    OTHER_FORM = "image that the layout does not read"
    # passed over: nothing is lost
    NO_PICTURE = "no image of a patient"
    NOT_FRONTAL = "of a patient without a frontal view"
    COPY = "copy of another file"
    LINK_INSIDE = "link to a folder that is read by itself, or not wanted"
    UNNAMED = "image that no table names or the options leave out"
    LEFT_OUT = "left out by the options"
    UNREAD_TABLE = "table that is not read"
    ARCHIVE = "archive that is not unpacked"
    HIDDEN = "hidden file"
    NO_FILE = "device, pipe or socket"
    OTHER = "of no image's type, by its name"


# The content of such a file cannot be read, so that nothing but another copy of it helps.
UNREADABLE = frozenset((Reason.DAMAGED, Reason.TOO_LARGE, Reason.NO_DECODER))


class Doubt(StrEnum):
    """A doubt about a sequence that was read; the text is shown with a count of sequences."""

    ORDER = "in an order that is a guess"
    ISSUERS = "of a patient whose number has two issuers"
    BIRTH_DATES = "of a patient with two birth dates"
    TILES = "of tiles of a slide, whose order is no order of time"
    NO_LABEL = "with a word for no label, such as NaN, N/A or none"
