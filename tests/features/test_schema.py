"""Which attribute goes to which column."""

import math

from contracts.settings import FieldSpec, Settings
from features.hashing import EMPTY, hash_id, missing_id
from features.schema import AttributeReader, FeatureSchema

PRICE = FieldSpec(source="item.price", kind="numeric")
BRAND = FieldSpec(source="item.brand")


def test_a_field_that_the_event_does_not_give_is_zero_or_nan() -> None:
    hashes, numbers = AttributeReader((PRICE, BRAND))({"brand": None, "colour": "red"})
    assert hashes == [0]
    assert math.isnan(numbers[0])


def test_numbers_that_a_column_cannot_hold_are_not_known() -> None:
    read = AttributeReader((PRICE,))
    for value in (math.inf, math.nan, 1e39, -1e300, 10**400, "12", [1], None):
        assert math.isnan(read({"price": value})[1][0]), value
    assert read({"price": True})[1] == [1.0]
    assert read({"price": -3})[1] == [-3.0]


def test_a_list_is_one_value() -> None:
    assert AttributeReader((BRAND,))({"brand": ["a", "b"]})[0] == [hash_id("item.brand", ["a", "b"])]


def test_several_labels_are_a_list_or_a_text_and_the_first_distinct_ones_count() -> None:
    read = AttributeReader((FieldSpec(source="item.tags", kind="multi", slots=3), BRAND))
    brand, a, b, c = hash_id("item.brand", "x"), *(hash_id("item.tags", tag) for tag in "abc")
    for tags in (["a", "b", "a", None], "a| b|a|"):
        assert read({"tags": tags, "brand": "x"})[0] == [brand, a, b, EMPTY]
    assert read({"tags": ["a", "b", "c", "d"]})[0] == [0, a, b, c]
    assert read({"tags": 7})[0] == [0, hash_id("item.tags", "7"), EMPTY, EMPTY]
    assert read({"tags": None})[0] == [0, 0, 0, 0]
    for nothing in ([], "", [None]):
        assert read({"tags": nothing})[0] == [0, missing_id("item.tags"), EMPTY, EMPTY]


def test_a_text_is_its_words_in_any_case() -> None:
    read = AttributeReader((FieldSpec(source="item.title", kind="text", slots=4),))
    words = [hash_id("item.title", word) for word in ("große", "katze", "2")]
    assert read({"title": "Große KATZE, große: 2"})[0] == [hash_id("item.title", "grosse"), *words[1:], EMPTY]
    assert read.columns([{"title": "katze"}, {}])[0].tolist() == [[words[1], *[EMPTY] * 3], [0] * 4]


def test_columns_are_what_the_reader_says_of_each_event() -> None:
    read = AttributeReader((PRICE, FieldSpec(source="item.tags", kind="multi"), BRAND))
    maps: list[dict[str, object]] = [{"tags": ["a"], "brand": "x"}, {}, {"tags": "a|b|c|d|e", "price": 3}]
    hashes, numbers = read.columns(maps)
    assert hashes.tolist() == [read(one)[0] for one in maps]
    assert hashes.shape == (3, read.n_ids) == (3, 5)
    assert numbers[2, 0] == 3
    assert read.columns([])[0].shape == (0, 5)


def test_fields_stand_by_owner_whatever_their_order_in_the_settings() -> None:
    sources = ("context.device", "user.country", "item.brand", "item.category")
    schema = FeatureSchema.of(Settings(fields=tuple(FieldSpec(source=source) for source in sources)))
    assert schema.layout.fields == (
        "user_id",
        "item_id",
        "item.brand",
        "item.category",
        "user.country",
        "context.device",
    )
    assert len(schema.missing) == len(set(schema.missing.tolist())) == 6
    assert len(set(schema.layout.dense)) == len(schema.layout.dense)
