"""Why a mutant that the judge accepts is no wrong solution: {exercise: {a part of the changed line: the reason}}."""

SMALL = "`is` and `==` agree on numbers below 257, and all inputs here are smaller"
NEVER_LESS = "the number is never below the one that it is compared with"
RECORDER = "only the recorder is told"
TWO_POWERS = "a power of two scales all weights alike, and changes no order"
SUPERSET = "at least the same tokens are looked at more closely, and the same one wins"

REASONS: dict[str, dict[str, str]] = {
    "00.draw": {
        "(1 - 2.0**-40)": "wrong only where a number of the noise is below 2⁻³⁹",
        "near = np.flatnonzero(earliest": SUPERSET,
        "bound = ": SUPERSET,
        "earliest = u": SUPERSET,
        "if largest <= 0": "no weight is negative",
        "largest": TWO_POWERS,
        "weights = weights *": TWO_POWERS,
    },
    "00.nucleus": {
        "heavy = w[w": "more tokens are sorted than needed; the same ones are kept",
        "cumsum( -1)": "the last axis is the only one",
    },
    "00.seed": {
        "params.temperature": "at temperature 0 the distribution has one token, and drawing from it gives the same",
        "[ -1]": "there is one row",
        "randbits": "a seed that nobody gave may have any number of bits",
    },
    "01.attention": {
        "if queries": "for one query the mask hides nothing",
        "strict=False": "both have one entry a block",
        "-1) for start": "a slice may end behind the last key",
    },
    "01.rows": {
        "capacity = ": "more room is reserved than is needed, and no token changes",
        "kept = ": RECORDER,
        "cumsum( -1)": "the last axis is the only one",
    },
    "02.release": {
        "!= len(pages)": "a set is never larger than its list",
        "is not len(pages)": SMALL,
        "are_ints": "the test saves time: integers pass the longer way as well, and nothing else is asked for",
        "if not pages": RECORDER,
    },
    "02.attend": {"outputs": "`torch.cat` of one tensor is that tensor"},
    "03.split": {">=": "`within` is never more than the edge has", " is ": SMALL},
    "03.evict": {
        "!= count": "no more pages go than are asked for",
        "is not count": SMALL,
        "-1)": "a negative count is not asked for",
    },
    "03.lock": {"<= 0": NEVER_LESS},
    "03.unlock": {
        "<= 0": NEVER_LESS,
        "node.locks": "a leaf is queued too early, and its entry is dropped when its turn comes",
    },
    "03.belady": {
        "name = ": "the empty prefix may have any name that no other has",
        "for start": "texts are whole numbers of tokens, of four bytes each",
    },
    "04.next": {
        "~cached": "the order is the same: every number is one less",
        "if starved": "all that starve have the same number",
    },
    "04.schedule": {
        "!= self.max_running": "no more run than may",
        "is not self.max_running": SMALL,
        "request.remaining": "a running request has a token to compute, or more; a decode finds nothing new",
        "victim == request": "a request equals itself alone",
    },
    "04.back": {"<= request.arrival": "no other request has the same arrival"},
    "04.hit": {"< request.computed": "it takes the same pages once more"},
    "05.expand": {"squeeze(": "a dimension is squeezed only if it is 1, and `view` says the shape again"},
    "05.scale": {" is ": "Python keeps one object for each of these names"},
    "06.block": {
        "!= len(tokens)": "no more drafts are kept than there are",
        "is not len(tokens)": SMALL,
        "excess + 1 - w[i] != 0": NEVER_LESS,
        "> 0 else": "a later beginning passes for certain, so it does not matter whether this one does",
    },
    "06.lookup": {
        "for n in range": "an end longer than the text allows is found nowhere",
        "while at": "position 0 is a whole number of tokens",
    },
    "06.gamma": {"max_gamma < -1": "`max` of no number raises ValueError as well"},
    "07.coupled": {"is not x": SMALL},
    "07.siblings": {"!= count": "no more candidates are drawn than are asked for", "is not count": SMALL},
    "07.biased": {
        "!= len(tokens)": "no more drafts are kept than there are",
        "is not len(tokens)": SMALL,
        "excess + 1 - w[i] != 0": NEVER_LESS,
        "> 0 else": "a later beginning passes for certain, so it does not matter whether this one does",
    },
    "08.kernel": {
        "key = n": "blocks begin at whole multiples of BLOCK, so no bit is carried",
        "other=": "what is loaded there belongs to no key, and gets weight 0",
        ", -1)": "the last axis is the only one",
        "total = ": "the sum is 0, or at least 1: the largest score has weight 1",
    },
    "09.publish": {
        "is not its": SMALL,
        "full < pages.shared": "the same pages are inserted and locked once more",
        "strict=False": "both have the same length",
    },
}


def reason(id: str, line: str) -> str:
    """Why a survivor is right. ValueError for one that nobody has looked at."""
    for part, why in REASONS.get(id, {}).items():
        if part in line:
            return why
    raise ValueError(f"a mutant of {id} is accepted, and docs/survivors.py does not say why it is right: {line}")
