"""The splits of a corpus's authors: which of them are for training, validation and testing."""

import re

ROLES = {
    "train": r"train(ing)?",
    "validation": r"val(id(ation)?)?|dev(el(opment)?)?",
    "test": r"test(ing)?|eval(uation)?",
}


def role_of_split(name: str | None) -> str | None:
    """ "train", "validation" or "test" for a split's usual names ("Train", "dev", "Test1", "test_clean"); else None."""
    for role, names in ROLES.items():
        if re.fullmatch(rf"({names})([-_. ]?\d+|[-_. ](set|split|data))?", (name or "").strip().lower()):
            return role
    return None


def is_split(name: str, asked: str) -> bool:
    """Whether a split's name is the one asked for, in any case or usual wording of the same role."""
    if name.lower() == asked.lower():
        return True
    return (
        not re.search(r"\d", asked + name)
        and role_of_split(asked) is not None
        and role_of_split(name) == role_of_split(asked)
    )
