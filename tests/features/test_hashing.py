"""Ids and values as 64-bit hashes."""

from hypothesis import given
from hypothesis import strategies as st

from features.hashing import FieldHasher, hash_id, missing_id

SCALARS = (
    st.text(max_size=20) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.lists(st.text(max_size=3))
)


@given(SCALARS)
def test_a_hash_is_a_signed_64_bit_integer_and_never_zero(value: object) -> None:
    assert -(1 << 63) <= hash_id("field", value) < 1 << 63
    assert hash_id("field", value) != 0


@given(st.integers())
def test_a_number_and_its_text_are_the_same_id(value: int) -> None:
    assert hash_id("user_id", value) == hash_id("user_id", str(value))


def test_the_same_value_in_two_fields_is_two_ids() -> None:
    assert hash_id("item.brand", "7") != hash_id("item.category", "7")


def test_a_hash_is_the_same_in_every_process_and_version() -> None:
    assert hash_id("user_id", "u1") == 6379372678167282719


def test_not_given_is_an_id_of_its_own() -> None:
    assert missing_id("item.brand") not in {0, hash_id("item.brand", ""), missing_id("item.category")}


@given(st.lists(SCALARS, max_size=30), st.integers(1, 4))
def test_what_a_hasher_remembers_or_forgets_changes_no_hash(values: list[object], capacity: int) -> None:
    hasher = FieldHasher("field", capacity)
    assert [hasher(value) for value in values] == [hash_id("field", value) for value in values]


def test_equal_values_have_equal_hashes() -> None:
    """Whoever remembers a hash by its value must not depend on which of the equal ones came first."""
    hasher = FieldHasher("field")
    assert len({hasher(value) for value in (True, 1, 1.0, "1", [1], [True])}) == 1
    assert hasher(0.0) == hasher(-0.0) != hasher(0.5)


def test_text_that_is_no_valid_unicode_has_a_hash() -> None:
    assert hash_id("field", "\ud800") != hash_id("field", "\ud801")
