"""Which attribute goes to which column."""

import math

from contracts.settings import FieldSpec, Settings
from features.hashing import hash_id
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
