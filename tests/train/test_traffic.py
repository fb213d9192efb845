"""What is read of a program's collectives, in a text by hand."""

from tests.train.traffic import traffic

PROGRAM = """HloModule step

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused.1 (p: bf16[4,2]) -> bf16[8,2] {
  %g.1 = bf16[8,2]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}, metadata={op_name="jit(step)/a" id=1}
}

%fused.2 (p: bf16[4,2]) -> bf16[8,2] {
  %g.2 = bf16[8,2]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}, metadata={op_name="jit(step)/a" id=1}
}

%inner.condition (c: (s32[], bf16[4,2])) -> pred[] {
  %limit.1 = u32[]{:T(128)} constant(5)
  ROOT %less.1 = pred[]{:T(512)} compare(%n, %limit.1), direction=LT
}

%inner.body (c: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %f.1 = bf16[8,2]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %f.2 = bf16[8,2]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %x.1 = bf16[3]{0} all-to-all(%y), channel_id=1, metadata={op_name="jit(step)/forward"}
}

%outer.condition (c: (s32[], bf16[4,2])) -> pred[] {
  %limit.2 = s32[]{:T(128)} constant(7)
  ROOT %less.2 = pred[]{:T(512)} compare(%n, %limit.2), direction=LT
}

%outer.body (c: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %w.1 = (s32[], bf16[4,2]{1,0}) while(%c), condition=%inner.condition, body=%inner.body, backend_config={}
  %r.1 = (f32[2,3]{1,0}, /*index=1*/s32[]) all-reduce(%q, %r), channel_id=4, to_apply=%add.1, metadata={}
}

ENTRY %main.1 (p: bf16[4,2]) -> bf16[4,2] {
  %w.2 = (s32[], bf16[4,2]{1,0}) while(%c), condition=%outer.condition, body=%outer.body, backend_config={}
  %x.2 = bf16[3]{0} all-to-all(%y), channel_id=1, metadata={op_name="jit(step)/backward"}
}
"""


def test_each_collective_counts_once_for_each_trip_of_the_loops_around_it() -> None:
    """One that is in two fusions is one; two that share a channel and not a name are two."""
    assert traffic(PROGRAM) == {
        "all-gather": 7 * 5 * 8 * 2 * 2,
        "all-to-all": 7 * 5 * 3 * 2 + 3 * 2,
        "all-reduce": 7 * (2 * 3 * 4 + 4),
    }
