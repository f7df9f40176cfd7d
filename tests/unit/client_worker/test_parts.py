from support.tiny_trainer import LAYOUT as TINY

from client_worker.parts import pick, private_manifest, sent_manifest
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.plan import RoundPlan
from fedlora.tensors.manifest import DataType, TensorInfo

HEAD = "base_model.model.classifier.weight"
LAYOUT = AdapterLayout(
    modules=TINY.modules,
    saved_tensors=(TensorInfo(name=HEAD, shape=(3, 40), dtype=DataType.F32),),
    base_fingerprint="f",
)
WHOLE = LAYOUT.manifest(4, DataType.BF16)


def test_an_update_holds_the_trained_parts_and_what_is_trained_in_full():
    plan = RoundPlan(trained=(Part.A,), private=(Part.B,))
    sent = sent_manifest(WHOLE, plan)
    assert not sent.difference(LAYOUT.manifest(4, DataType.BF16, parts=(Part.A,)))
    assert sent_manifest(WHOLE, RoundPlan()) == WHOLE


def test_private_is_what_the_plan_says_and_kept_in_full_precision():
    private = private_manifest(WHOLE, RoundPlan(trained=(Part.A,), private=(Part.B,)))
    assert {parse_key(t.name).part for t in private.tensors} == {Part.B}
    assert {t.dtype for t in private.tensors} == {DataType.F32}
    assert private_manifest(WHOLE, RoundPlan()).tensors == ()


def test_tensors_are_picked_by_name():
    tensors = {t.name: object() for t in WHOLE.tensors}
    sent = sent_manifest(WHOLE, RoundPlan(trained=(Part.B,)))
    assert pick(tensors, sent).keys() == {t.name for t in sent.tensors}
