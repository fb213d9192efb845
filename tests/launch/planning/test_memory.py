"""What is alive at the peak of a program: of a dump by hand, in which each rule is met once."""

from pathlib import Path

import pytest

from launch.planning.compiled.memory import CLASSES, at_peak, main_memory

V, D, F = 96, 10, 14
OTHERS = {3, 8, D, F}
PROGRAM = """HloModule jit_step
  %p.1 = f32[10,14]{1,0} parameter(0), metadata={op_name="state.params['up']['kernel']"}
  %p.2 = f32[10,14]{1,0} parameter(1), metadata={op_name="state.opt_state[0].mu['up']['kernel']"}
  %p.3 = s32[8]{0} parameter(2), metadata={op_name="batch['tokens']"}
  %kept.1 = bf16[3,8,10]{2,1,0} fusion(%p.1), metadata={op_name="jit(step)/jvp()/while/body/dynamic_update_slice"}
  %soon.1 = bf16[8,14]{1,0} fusion(%p.1), metadata={op_name="jit(step)/jvp()/dot_general"}
  %late.1 = f32[8,7]{1,0} fusion(%p.1), metadata={op_name="jit(step)/jvp()/tanh"}
  %scores.1 = f32[8,48]{1,0} fusion(%p.1), metadata={op_name="jit(step)/jvp()/dot_general"}
  %grad.1 = f32[14,10]{1,0} fusion(%p.1), metadata={op_name="jit(step)/transpose(jvp())/dot_general"}
  %back.1 = f32[8,10]{1,0} fusion(%p.1), metadata={op_name="jit(step)/transpose(jvp())/mul"}
  %fast.1 = f32[99,99]{1,0:S(1)} fusion(%p.1), metadata={op_name="jit(step)/jvp()/mul"}
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 560, parameter 0, shape |f32[10,14]| at ShapeIndex {}, maybe-live-out:
 value: <9 new.1{0} @0> (size=560,offset=0): f32[10,14]{1,0}
 value: <1 p.1 @0> (size=560,offset=0): f32[10,14]{1,0}
allocation 1: size 560, parameter 1, shape |f32[10,14]| at ShapeIndex {}, maybe-live-out:
 value: <2 p.2 @0> (size=560,offset=0): f32[10,14]{1,0}
allocation 2: size 32, parameter 2, shape |s32[8]| at ShapeIndex {}:
 value: <3 p.3 @0> (size=32,offset=0): s32[8]{0}
allocation 3: size 4000, preallocated-temp:
 value: <4 kept.1 @0> (size=480,offset=0): bf16[3,8,10]{2,1,0}
 value: <5 while.1{1} (phi) @0> (size=480,offset=0): bf16[3,8,10]{2,1,0}
 value: <6 soon.1 @0> (size=224,offset=480): bf16[8,14]{1,0}
 value: <7 late.1 @0> (size=224,offset=704): f32[8,7]{1,0}
 value: <8 scores.1 @0> (size=1536,offset=928): f32[8,48]{1,0}
 value: <10 grad.1 @0> (size=560,offset=480): f32[14,10]{1,0}
 value: <11 back.1 @0> (size=320,offset=2464): f32[8,10]{1,0}
 value: <12 inside.1 @0> (size=100,offset=1000): f32[25]{0}
 value: <13 fast.1 @0> (size=9999,offset=0): f32[99,99]{1,0:S(1)}
allocation 4: size 9999, color 1, preallocated-temp:
 value: <14 vmem.1 @1> (size=9999,offset=0): f32[99,99]{1,0:S(1)}
"""
RANGES = """HloLiveRange (max 20):
  BufferLiveRange:
    kept.1{}:2-3
    while.1{1}:3-9
    soon.1{}:3-4
    late.1{}:3-8
    scores.1{}:4-6
    inside.1{}:5-6
    back.1{}:5-6
    grad.1{}:9-10
    fast.1{}:1-20
    vmem.1{}:1-20
"""


def dumped(folder: Path, **changes: str) -> Path:
    for part, text in {"": PROGRAM, "-buffer-assignment": ASSIGNMENT, "-live-range": RANGES}.items():
        (folder / f"module_1.jit_step.after_optimizations{part}.txt").write_text(changes.get(part, text))
    return folder


def test_what_is_alive_is_told_by_class(tmp_path: Path) -> None:
    """At 5: arguments, what is kept for the way back (by its loop, too), scores, and what is made on the way back."""
    found = at_peak(dumped(tmp_path), V, [(D, F)], OTHERS)
    assert found.classes == {
        "parameters": 560,
        "optimizer": 560,
        "batch": 32,
        "gradients": 0,
        "saved_activations": 480 + 224,  # stacked; and alive when the way back has begun
        "logits": 1536,  # in which a smaller value lies, that counts once
        "temporaries": 320,
    }
    assert found.bytes == sum(found.classes.values())
    assert tuple(found.classes) == CLASSES


def test_a_gradient_has_the_shape_of_a_parameter(tmp_path: Path) -> None:
    ranges = RANGES.replace("grad.1{}:9-10", "grad.1{}:5-6").replace("late.1{}:3-8", "late.1{}:3-3")
    ranges = ranges.replace("    scores.1{}:4-6\n", "")  # else most is there before it
    dump = dumped(tmp_path, **{"-live-range": ranges})
    found = at_peak(dump, V, [(D, F)], OTHERS).classes
    assert (found["gradients"], found["logits"]) == (560, 0)
    assert at_peak(dump, V, [(D, 9)], OTHERS).classes["gradients"] == 0


def test_another_dump_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the compiler has dumped \[\]"):
        at_peak(tmp_path, V, [])


def test_what_lies_in_other_memories_is_none_of_the_main_one(tmp_path: Path) -> None:
    report = tmp_path / "module.after_optimizations-memory-usage-report.txt"
    with pytest.raises(ValueError, match="no report"):
        main_memory(tmp_path)
    report.write_text("Memory Space: vmem (color=1)\nTotal bytes: 99 (99B)\n")
    with pytest.raises(ValueError, match="no report"):
        main_memory(tmp_path)
    report.write_text(f"{report.read_text()}\nMemory Space: default (color=0)\nTotal bytes: 4112 (4.0KiB)\n")
    assert main_memory(tmp_path) == 4112
