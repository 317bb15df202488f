"""Text of ``fpnlab plan``."""

from fpnlab.study.dry_run import clock
from fpnlab.study.power_plan import PowerPlan


def describe_plan(plan: PowerPlan, *, metric: str, seeds: int, power: float, source: str) -> str:
    """Returns a plan as text: one sentence, and a row a number of seeds.

    Args:
      plan: The plan.
      metric: Metric that is compared.
      seeds: Number of seeds in the config.
      power: Wanted power, 0 to 1.
      source: Origin of the standard deviation, in words.
    """
    lines = [
        f"{plan.needed} seeds decide a true difference of {plan.effect:g} points of {metric} with "
        f"a probability of {power:g} or more;",
        f"the standard deviation over seeds of paired differences is {plan.deviation:.2f} points "
        f"({source}).",
        "",
        f"{'seeds':>5}  {'power':>5}  {'trials':>6}  {'time':>8}",
    ]
    for row in plan.rows:
        notes = [
            note
            for note, applies in (
                ("this config", row.seeds == seeds),
                ("needed", row.seeds == plan.needed),
            )
            if applies
        ]
        note = f"  <- {', '.join(notes)}" if notes else ""
        lines.append(
            f"{row.seeds:>5}  {row.power:>5.2f}  {row.trials:>6}  {clock(row.seconds):>8}{note}"
        )
    return "\n".join(lines)
