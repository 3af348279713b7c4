"""The comparison itself can fail: whatever differs is found, and whatever deviates from the table is told."""

import unittest

import numpy as np
import wire
from expectations import Expectation, Outcome, Table
from tensors import Tensor


def tensor(values, datatype="FP32", dtype=np.float32):
    return Tensor.of(datatype, np.array(values, dtype))


class Bits(unittest.TestCase):
    def test_equal_tensors_have_no_difference(self):
        self.assertIsNone(tensor([1, np.nan]).difference(tensor([1, np.nan])))

    def test_the_sign_of_a_zero_is_a_difference(self):
        self.assertIn("1 of 2 elements, the first at 1", tensor([1, 0.0]).difference(tensor([1, -0.0])))

    def test_the_payload_of_a_nan_is_a_difference(self):
        quiet, other = (Tensor("FP32", (1,), bytes([payload, 0, 0xC0, 0x7F])) for payload in (0, 1))
        self.assertIsNotNone(quiet.difference(other))

    def test_shapes_and_datatypes_are_compared(self):
        self.assertIn("shape", tensor([[1, 2]]).difference(tensor([1, 2])))
        self.assertIn("datatype", tensor([1]).difference(tensor([1], "INT32", np.int32)))

    def test_strings_survive_the_raw_form(self):
        strings = Tensor.of("BYTES", np.array(["", "a\0b", "ü"], object))
        self.assertIsNone(strings.difference(Tensor.from_raw("BYTES", (3,), strings.raw())))


class Json(unittest.TestCase):
    def read(self, text, right):
        outputs = wire.columns(b'{"model_name":"m","model_version":"1","outputs":{"y":%s}}' % text.encode())
        return wire.from_json(outputs["y"], right)

    def test_numbers_are_read_back_into_their_datatype(self):
        right = tensor([[0.1, -0.0]])
        self.assertIsNone(right.difference(self.read("[[0.1,-0.0]]", right)))
        self.assertIsNotNone(right.difference(self.read("[[0.1,0.0]]", right)))

    def test_another_structure_is_malformed(self):
        for text in ("[1]", "[[1]]", "[[1,2],[3,4]]", "[[1,true]]", '[[1,"2"]]', "[[1,[2]]]"):
            with self.assertRaises(wire.Malformed, msg=text):
                self.read(text, tensor([[1, 2]]))

    def test_what_json_cannot_express_is_malformed(self):
        with self.assertRaises(wire.Malformed):
            self.read("[[1,NaN]]", tensor([[1, 2]]))

    def test_a_fraction_is_no_integer(self):
        with self.assertRaises(wire.Malformed):
            self.read("[1.0]", tensor([1], "INT32", np.int32))

    def test_more_digits_than_needed_are_found(self):
        self.assertIsNone(wire.surplus_digits([wire.Number("0.1")], tensor([0.1])))
        self.assertIsNotNone(wire.surplus_digits([wire.Number("0.10000000149")], tensor([0.1])))


class Deviations(unittest.TestCase):
    table = Table({("odd", "start"): Expectation(("refused-start",), "datatype")})

    def test_what_is_expected_is_no_fault(self):
        self.assertEqual(self.table.deviations("plain", {"json": Outcome("same")}), [])
        self.assertEqual(self.table.deviations("odd", {"start": Outcome("refused-start", "the datatype i4")}), [])

    def test_a_refusal_that_is_not_listed_is_a_fault(self):
        self.assertEqual(len(self.table.deviations("plain", {"start": Outcome("refused-start", "the datatype i4")})), 1)

    def test_an_answer_where_a_refusal_is_listed_is_a_fault(self):
        self.assertEqual(len(self.table.deviations("odd", {"start": Outcome("same"), "json": Outcome("same")})), 1)

    def test_a_refusal_for_another_reason_is_a_fault(self):
        self.assertEqual(len(self.table.deviations("odd", {"start": Outcome("refused-start", "no memory")})), 1)

    def test_a_form_without_an_outcome_is_a_fault(self):
        self.assertEqual(len(self.table.deviations("odd", {})), 1)

    def test_a_case_that_the_suite_does_not_have_is_a_fault(self):
        self.assertEqual(len(self.table.unknown_names({"plain"})), 1)


if __name__ == "__main__":
    unittest.main()
