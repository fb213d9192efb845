"""What is read of a program's collectives: in a text by hand, as the compiler for TPUs writes it, and in real ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.planning.compiled.traffic import collectives, has_whole_logits, traffic
from model.attention import Scores, segments
from model.attention.biases.distance import Bucketed
from model.attention.cores import blockwise, plan
from model.axes import partition_spec
from tests.small import QUICK, run
from train.devices.mesh import AXES, make_mesh, make_rules
from train.sharding import placed

# One loop in another, five trips in steps of two and seven; and one that runs as often as the data say.
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

%async_collective_fusion.3 (p: bf16[4,2]) -> bf16[8,2] {
  %g.3 = bf16[8,2]{1,0:T(8,128)} all-gather(%p), channel_id=3, dimensions={0}, metadata={op_name="jit(step)/a" id=1}
}

%inner.condition (c: (s32[], bf16[4,2])) -> pred[] {
  %c.1 = (s32[]{:T(128)}, bf16[4,2]{1,0}) parameter(0)
  %limit.1 = u32[]{:T(128)} constant(9)
  %n.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%n.1, %limit.1), direction=LT
}

%inner.body (c: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %c.2 = (s32[]{:T(128)}, bf16[4,2]{1,0}) parameter(0)
  %n.2 = s32[]{:T(128)} get-tuple-element(%c.2), index=0
  %step.2 = s32[]{:T(128)} constant(2)
  %next.2 = s32[]{:T(128)} add(%n.2, %step.2)
  %f.1 = bf16[8,2]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %f.2 = bf16[8,2]{1,0} fusion(%x), kind=kCustom, calls=%fused.2
  %x.1 = bf16[3]{0} all-to-all(%y), channel_id=1, metadata={op_name="jit(step)/forward"}
  ROOT %t.2 = (s32[]{:T(128)}, bf16[4,2]{1,0}) tuple(%next.2, %f.1)
}

%outer.condition (c: (bf16[4,2], s32[])) -> pred[] {
  %c.3 = (bf16[4,2]{1,0}, s32[]{:T(128)}) parameter(0)
  %limit.3 = s32[]{:T(128)} constant(10)
  %n.3 = s32[]{:T(128)} get-tuple-element(%c.3), index=1
  ROOT %less.3 = pred[]{:T(512)} compare(%n.3, %limit.3), direction=LT
}

%outer.body (c: (bf16[4,2], s32[])) -> (bf16[4,2], s32[]) {
  %c.4 = (bf16[4,2]{1,0}, s32[]{:T(128)}) parameter(0)
  %n.4 = s32[]{:T(128)} get-tuple-element(%c.4), index=1
  %copy.4 = s32[]{:T(128)} copy(%n.4)
  %step.4 = s32[]{:T(128)} constant(1)
  %next.4 = s32[]{:T(128)} add(%copy.4, %step.4)
  %zero.4 = s32[]{:T(128)} constant(0)
  %copy.5 = s32[]{:T(128)S(6)} copy(%zero.4)
  %start.4 = (s32[]{:T(128)}, bf16[4,2]{1,0}) tuple(%copy.5, %x)
  %w.1 = (s32[], bf16[4,2]{1,0}) while(%start.4), condition=%inner.condition, body=%inner.body, backend_config={}
  %r.1 = (f32[2,3]{1,0}, /*index=1*/s32[]) all-reduce(%q, %r), channel_id=4, to_apply=%add.1, metadata={}
  ROOT %t.4 = (bf16[4,2]{1,0}, s32[]{:T(128)}) tuple(%x, %next.4)
}

%data.condition (c: (s32[], s32[])) -> pred[] {
  %c.6 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %n.6 = s32[]{:T(128)} get-tuple-element(%c.6), index=0
  %limit.6 = s32[]{:T(128)} get-tuple-element(%c.6), index=1
  ROOT %less.6 = pred[]{:T(512)} compare(%n.6, %limit.6), direction=LT
}

%data.body (c: (s32[], s32[])) -> (s32[], s32[]) {
  %c.7 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %f.7 = bf16[8,2]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.3
  ROOT %t.7 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%a, %b)
}

ENTRY %main.1 (p: bf16[4,2]) -> bf16[4,2] {
  %three.8 = s32[]{:T(128)} constant(3)
  %start.8 = (bf16[4,2]{1,0}, s32[]{:T(128)}) tuple(%p, %three.8)
  %w.2 = (bf16[4,2]{1,0}, s32[]) while(%start.8), condition=%outer.condition, body=%outer.body, backend_config={}
  %w.3 = (s32[], s32[]) while(%start.9), condition=%data.condition, body=%data.body, backend_config={}
  %start.9 = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%three.8, %live)
  %s.1 = (bf16[5]{0}, bf16[5]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), channel_id=6, metadata={}
  %s.2 = bf16[5]{0} collective-permute-done(%s.1)
  %x.2 = bf16[3]{0} all-to-all(%y), channel_id=1, metadata={op_name="jit(step)/backward"}
}
"""


def test_each_collective_counts_once_for_each_trip_of_the_loops_around_it() -> None:
    """One that is in two fusions is one, or goes on in a loop; two that share a channel and not a name are two."""
    assert traffic(PROGRAM) == {
        "all-gather": 7 * 5 * 8 * 2 * 2,
        "all-to-all": 7 * 5 * 3 * 2 + 3 * 2,
        "all-reduce": 7 * (2 * 3 * 4 + 4),
        "collective-permute": 5 * 2,
    }
    times = sorted((one.kind, one.times) for one in collectives(PROGRAM))
    assert times == [
        ("all-gather", 35), ("all-reduce", 7), ("all-to-all", 1), ("all-to-all", 35), ("collective-permute", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("here", "instead"),
    [
        ("constant(9)", "get-tuple-element(%c.1), index=1"),  # the data say where it ends
        ("add(%n.2, %step.2)", "add(%n.2, %n.2)"),
        ("compare(%n.1, %limit.1), direction=LT", "compare(%n.1, %limit.1), direction=LE"),
        ("tuple(%next.2, %f.1)", "tuple(%n.2, %f.1)"),
        ("constant(0)", "add(%n.4, %step.4)"),
    ],
)
def test_a_loop_that_does_not_count_to_a_constant_in_equal_steps_is_refused(here: str, instead: str) -> None:
    assert here in PROGRAM
    with pytest.raises(ValueError, match="does not say how often"):
        traffic(PROGRAM.replace(here, instead))


@pytest.mark.parametrize("sent", [False, True])
def test_a_loop_as_long_as_the_data_say_needs_no_count_unless_it_sends(sent: bool) -> None:
    """Compiled for CPUs: seven trips of a loop of all-reduces, and then one of which only the data know."""
    mesh = make_mesh(dict(zip(AXES, (1, 4, 1, 1), strict=True)), jax.devices()[:4])

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"), check_vma=False)
    def function(x: jax.Array, trips: jax.Array) -> jax.Array:
        x = jax.lax.fori_loop(3, 10, lambda _, x: jnp.sin(jax.lax.psum(x, "fsdp")), x)
        return jax.lax.fori_loop(0, trips, lambda _, x: jnp.cos(jax.lax.psum(x, "fsdp") if sent else x), x)

    shapes = jax.ShapeDtypeStruct((20,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(function).lower(*shapes).compile().as_text()
    if sent:
        with pytest.raises(ValueError, match="all-reduce of %.* does not say how often"):
            traffic(text)
    else:
        assert traffic(text) == {"all-reduce": 7 * 5 * 4}


def test_whole_logits_are_seen_in_any_shape() -> None:
    found = [has_whole_logits(f"%x = {shape}{{1,0}} f(%y)", 6, 11) for shape in ("f32[2,3,11]", "bf16[11,6]")]
    assert found == [True, True]
    assert not has_whole_logits("%x = (f32[11,5]{1,0}, bf16[6,10]{1,0}, f32[66]{0}) f(%y)", 6, 11)


@pytest.mark.parametrize("ways", [(1, 2, 2, 1), pytest.param((1, 4, 1, 1), marks=pytest.mark.rest)])
def test_the_gradient_of_a_bias_is_summed_over_devices_once(
    ways: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each block of those that somebody sees, of which only the data know the number."""
    monkeypatch.setattr(plan, "_SHORT", 0)
    monkeypatch.setattr(blockwise, "_SMALL", 0)
    B, T, H, K, N = 4, 136, 2, 4, 7
    rng = np.random.default_rng(0)
    x_BTHK = rng.standard_normal((B, T, H, K)).astype(np.float32)
    ids_BT = np.repeat(np.arange(1, 3, dtype=np.int32)[None], B, axis=0).repeat(T // 2, axis=1)

    def loss(table_NH: jax.Array, x_BTHK: jax.Array, ids_BT: jax.Array) -> jax.Array:
        scores = Scores(mask=segments(ids_BT), scale=1.0, bias=Bucketed(table_NH, 11, False))
        return jnp.sum(x_BTHK * blockwise.blockwise(x_BTHK, x_BTHK, x_BTHK, scores))

    arguments = rng.standard_normal((N, H)).astype(np.float32), x_BTHK, ids_BT
    wanted = run(jax.grad(loss), *arguments)
    mesh = make_mesh(dict(zip(AXES, ways, strict=True)), jax.devices()[:4])
    with placed(mesh, make_rules(1)):
        axes = (None, "heads"), ("batch", None, "heads", None), ("batch", None)
        places = [NamedSharding(mesh, partition_spec(names)) for names in axes]
        program = jax.jit(jax.grad(loss), in_shardings=places).lower(*arguments).compile(QUICK)
        np.testing.assert_allclose(program(*jax.device_put(arguments, tuple(places))), wanted, rtol=1e-5, atol=1e-4)
    assert traffic(program.as_text())["all-reduce"] < 2 * 4 * N * H + B * T


NAMELESS = """HloModule step

%part (p: bf16[6]) -> bf16[6] {
  ROOT %g.1 = bf16[6]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
}

%async_collective_fusion.2 (p: bf16[6]) -> bf16[6] {
  ROOT %g.2 = bf16[6]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
}

%forward (p: bf16[6]) -> bf16[6] {
  %f.1 = bf16[6]{0} fusion(%p), kind=kCustom, calls=%part
  ROOT %f.2 = bf16[6]{0} fusion(%f.1), kind=kCustom, calls=%async_collective_fusion.2
}

%backward (p: bf16[6]) -> bf16[6] {
  ROOT %g.3 = bf16[6]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
}

%limit (p: bf16[6]) -> pred[] {
}

ENTRY %main.1 (p: bf16[6]) -> bf16[6] {
  %w.1 = bf16[6]{0} while(%p), condition=%limit, body=%forward, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %w.2 = bf16[6]{0} while(%w.1), condition=%limit, body=%backward, backend_config={"known_trip_count":{"n":"7"}}
}
"""


def test_what_has_lost_its_name_is_told_apart_by_its_loop() -> None:
    """As gathers of shard_map, which share a channel, have where the compiler writes them as sums."""
    assert sorted((one.bytes, one.together) for one in collectives(NAMELESS)) == [(5 * 12, True), (7 * 12, False)]


WIRED = """HloModule step

ENTRY %main.1 (p: bf16[4,2]) -> bf16[4,2] {
  %a.1 = bf16[80]{0} all-gather(%p), channel_id=1, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}
  %b.1 = f32[6]{0} all-reduce(%p), channel_id=2, replica_groups={{0,4,8},{1,5,9}}
  %c.1 = f32[5]{0} reduce-scatter(%p), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %d.1 = f32[7]{0} collective-permute-start(%p), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %e.1 = f32[12]{0} all-to-all(%p), channel_id=5, replica_groups=mesh['axis_0'=4,'axis_1'=3] {'axis_0','axis_1'}
  %f.1 = (bf16[9]{0}, u32[], token[]) send(%p, %t), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2:3}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501 - as the compiler writes it


def test_what_a_device_sends_is_told_by_the_size_of_its_group() -> None:
    """All ways to write groups; of V bytes in all V (N - 1) / N go round, of a sum of all twice that; and what goes
    between slices is known by itself.
    """
    found = {one.kind: one for one in collectives(WIRED) if not one.slow}
    wire = {
        "all-gather": (8, 160 * 7 / 8),
        "all-reduce": (3, 2 * 24 * 2 / 3),
        "reduce-scatter": (2, 20 * 2 * 1 / 2),
        "collective-permute": (2, 28.0),
        "all-to-all": (12, 48 * 11 / 12),
    }
    assert {kind: (one.among, one.wire) for kind, one in found.items()} == wire
    assert [kind for kind, one in found.items() if one.together] == ["collective-permute"]
    (between,) = [one for one in collectives(WIRED) if one.slow]
    assert (between.kind, between.bytes, between.among) == ("all-reduce", 18, 3)
    assert between.wire == 2 * 18 * 2 / 3
    assert traffic(WIRED)["all-reduce"] == 24  # of a slice alone
    whole = "HloModule step, is_scheduled=true, num_partitions=7, x={}" + WIRED.removeprefix("HloModule step").replace(
        "replica_groups={{0,4,8},{1,5,9}}", "replica_groups={}"
    )
    assert {one.kind: one.among for one in collectives(whole) if not one.slow}["all-reduce"] == 7
