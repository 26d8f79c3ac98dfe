import re

import pytest

from disentangled_mil.train import progress
from disentangled_mil.train.progress import PlannedStage, RunPlan, StageProgress, planned

STAGES = [PlannedStage("genes", "network on genes", 0), PlannedStage("teacher", "teacher", 20)]
STAGES += [PlannedStage("student", "student", 20), PlannedStage("distilled", "distilled student", 20)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its list gets a time."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def test_time_left_is_the_work_left_at_the_speed_so_far(clock):
    plan = RunPlan({"fold0 (1/2)": STAGES, "fold1 (2/2)": STAGES})
    plan.enter("genes")
    assert plan.advance(5, 15) == ""
    plan.enter("teacher")
    clock.append(300.0)
    assert plan.advance(10, 10) == ", run: 55 minutes left"  # 110 of 120 at 30 seconds each


def test_stages_that_are_declined_or_done_before_are_left_out(clock):
    plan = RunPlan({"fold0 (1/2)": STAGES, "fold1 (2/2)": STAGES})
    plan.enter("student")
    clock.append(600.0)
    assert plan.advance(20, 0) == ", run: 40 minutes left"
    assert plan.enter("genes") == "fold1 (2/2), stage 1/4: network on genes"
    assert plan.advance(3, 7) == ", run: 30 minutes left"


def test_a_stage_shows_its_place_in_the_run(clock, capsys):
    with planned({"fold0 (1/1)": STAGES}), StageProgress("teacher", 10, 2, done=1) as bar:
        clock.append(10.0)
        bar.step(10, 1, 0.5)
    shown = re.split("[\\r\\n]+", capsys.readouterr().err)
    assert any("fold0 (1/1), stage 2/4: teacher, epoch 2/2, loss 0.500, run: 40 seconds left" in line for line in shown)


def test_a_stage_outside_a_plan_shows_its_name_and_its_own_time(clock, capsys):
    with StageProgress("mine", 10, 2) as bar:
        clock.append(10.0)
        bar.step(10, 0, 0.5)
    assert "mine, epoch 1/2, loss 0.500, run: 10 seconds left" in capsys.readouterr().err
