"""Where a run with TRL may be broken off: at the end of a generation, and nowhere inside it."""

from __future__ import annotations

from collections.abc import Callable

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback


class GenerationBoundary(TrainerCallback):
    """Keep checkpoints where a generation ends: what TRL has sampled and not yet used up is in no checkpoint.

    That of `enable_jit_checkpoint` too, at the first such place after a SIGTERM.
    Evaluations too where the best is looked for: it would else be of weights that no checkpoint has.
    """

    # what waits for its generation's end; TRL's order of the data
    late, sampler = frozenset(), None
    # transformers' own callback, which saves and stops after a SIGTERM
    at_sigterm = TrainerCallback()

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
        epochs, inside = self.place(args, state, train_dataloader)
        if inside:
            raise ValueError(
                f"resume_from_checkpoint must be a generation's end, update {state.global_step} is not"
            )
        for sampler in [self.sampler] * epochs if self.sampler else ():
            # TRL draws the order of every epoch from one stream, and begins it anew
            next(iter(sampler))

    def on_step_end(self, args, state, control, train_dataloader, **kwargs):
        moved = ("should_save", "should_evaluate")[: 2 if args.metric_for_best_model else 1]
        inside = self.place(args, state, train_dataloader)[1] and not control.should_training_stop
        wanted = self.late.union(name for name in moved if getattr(control, name))
        vars(control).update({name: name in wanted and not inside for name in moved})
        self.late = wanted if inside else frozenset()
        if not inside:
            self.at_sigterm.on_step_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        self.at_sigterm.on_train_end(args, state, control)

    def place(self, args, state, batches) -> tuple[int, int]:
        """Say where training stands; an epoch's last update may have fewer batches.

        Args:
            args: TRL's.
            state: of the trainer.
            batches: of an epoch.

        Returns: the epochs done, and the batches since a generation began.
        """
        accumulated = args.gradient_accumulation_steps  # batches of an update
        updates = -(-len(batches) // accumulated) if self.sampler else args.max_steps  # of an epoch
        done = state.global_step % updates * accumulated
        return state.global_step // updates, done % (
            args.steps_per_generation * args.num_iterations
        )


class StopWhen(TrainerCallback):
    """Save and stop at the end of a generation after which the first process says that it is time."""

    def __init__(self, boundary: GenerationBoundary, is_time: Callable[[], bool]) -> None:
        """Keep what is asked, and whom.

        Args:
            boundary: knows where generations end.
            is_time: asked there; processes may have other clocks, so the first one's answer holds for all.
        """
        self.boundary, self.is_time = boundary, is_time

    def on_step_end(self, args, state, control, train_dataloader, **kwargs):
        inside = self.boundary.place(args, state, train_dataloader)[1]
        if inside or state.global_step >= state.max_steps:
            return
        (stop,) = broadcast_object_list([state.is_world_process_zero and self.is_time()])
        if stop:
            control.should_save = control.should_training_stop = True
