"""The training loop.

Batches come as uint8 or float images, (N, C, H, W). On the device they become float32 in [0, 1],
are augmented, and then are both what the objective compares with and, with noise where it is
wanted and normalised, what the network is fed.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from recon.data.loaders import Batch, to_unit_range
from recon.data.noise import noise_seeds
from recon.errors import InterruptedRunError, UserError
from recon.models.output import Adaptive, Output, joined, reconstruct
from recon.objectives.losses import Objective, Prediction
from recon.objectives.metrics import image_metrics
from recon.training.averaging import WeightAverage
from recon.training.dividing import divided, learns_from
from recon.training.interruption import Watch, watch_signals
from recon.training.logs import EpochRow, announce
from recon.training.meter import Losses, Meter, not_finite, weights_are_finite
from recon.training.plan import Plan, Split
from recon.training.runtime import Runtime, unwrap
from recon.training.schedule import learning_rate, rising
from recon.training.seeding import VALIDATION, seed_of, seed_torch
from recon.training.state import RunState
from recon.training.sums import Sums, further_figures
from recon.training.validation import judged, mean_scores

__all__ = ["Plan", "Split", "Trainer"]

logger = logging.getLogger("recon")


@dataclass
class Trainer:
    """Trains a network.

    Args:
        model: The network, placed and spread over its devices.
        objective: (N,) losses from reconstructions and targets.
        optimizer: Over the network's weights.
        runtime: Device and precision.
        plan: How to minimise.
        train: Images to learn from.
        validation: Images never trained on, or None.
        prepare: From images in [0, 1] to the network's input.
        augment: From images in [0, 1], a seed, and their places in the batch to changed images.
        corrupt: From images in [0, 1] and a seed for each to noisy ones; None: no noise.
        average: Of the weights; None judges and saves the weights of the last step.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    plan: Plan
    train: Split
    validation: Split | None
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, int, Tensor], Tensor]
    corrupt: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    average: WeightAverage | None = None
    state: RunState = field(default_factory=RunState)

    def __post_init__(self) -> None:
        self.scaler = self.runtime.scaler()
        self._takes_one: bool | None = None
        self.ranks = self.runtime.ranks

    def fit(self, save: Callable[["Trainer"], None]) -> None:
        """Train until the planned epochs are done.

        Args:
            save: Called after each epoch, and in the middle of one when the run is interrupted.

        Raises:
            UserError: If the loss is not finite, or an image is unreadable and the plan says stop.
            InterruptedRunError: If a signal ended the run; it has been saved.
        """
        if not self.ranks.first:  # The sums of an epoch that is resumed count once.
            self.state.sums = Sums()
        with watch_signals() as watch:
            if self.validation is not None:  # Before the first step takes its memory.
                self.validation.loader.start()
            while self.state.epoch < self.plan.epochs:
                if self._train_epoch(watch) is None:
                    self._close_epoch(watch)
                save(self)
                signum = self._signal(watch)
                if signum is not None:
                    raise InterruptedRunError(signum)

    # One epoch

    def _train_epoch(self, watch: Watch) -> int | None:
        """Train to the end of the epoch, or to the signal that is returned."""
        signum = None
        self.model.train()
        batches = self.train.batches
        batches.epoch, batches.start = self.state.epoch, self.state.step
        title = f"Epoch {self.state.epoch + 1}/{self.plan.epochs}"
        meter = Meter(self.state, self.runtime, title, batches.batches)
        for batch in self.train.loader:
            self._note_unreadable(batch, self.train)
            parts = self.ranks.gather((len(batch.indices), len(batch.failures)))
            learns_from_one = partial(self._learns_from_one, batch)
            total, pieces = divided(parts, self.plan.accumulation, learns_from_one)
            if pieces > 0:
                meter.add(self._step(batch, total, pieces))
            meter.advance()
            signum = self._signal(watch)
            if signum is not None:
                break
        meter.close()
        self._pool()
        if self.state.sums.images == 0 and signum is None:
            raise UserError(
                f"none of the {batches.count} training images can be read, or no more than one of "
                f"each batch; mend them, or raise batch_size_train"
            )
        if not weights_are_finite(self.model):
            raise not_finite(self.state.epoch + 1, self.state.step)
        return signum

    def _signal(self, watch: Watch) -> int | None:
        """The signal that has reached any rank: all of them end at the same step."""
        return next((s for s in self.ranks.gather(watch.signum) if s is not None), None)

    def _learns_from_one(self, batch: Batch) -> bool:
        if self._takes_one is None:
            one = to_unit_range(self.runtime.send(batch.images[:1]))
            fed = self.prepare(self.augment(one, 0, batch.places[:1]))
            self._takes_one = learns_from(unwrap(self.model), fed)
        return self._takes_one

    def _step(self, batch: Batch, total: int, pieces: int) -> Losses:
        """One step of the optimiser; returns the losses of this rank's images.

        Args:
            batch: This rank's part of the whole batch.
            total: Images in the whole batch.
            pieces: That this rank's part is computed in.
        """
        state = self.state
        place = (self.plan.seed, state.epoch, state.step, self.ranks.rank, 0)
        seed_torch(seed_of(*place), self.runtime.devices)
        target = self._augmented(to_unit_range(self.runtime.send(batch.images)), batch.places)
        fed = self._corrupted(target, batch, self.train)
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        parts = zip(target.tensor_split(pieces), fed.tensor_split(pieces), strict=True)
        outputs, losses = zip(*(self._learn(*part, total) for part in parts), strict=True)
        if self.plan.gradient_clip > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        network = unwrap(self.model)
        if isinstance(network, Adaptive):
            network.adapt(joined(outputs), self.ranks.total, first=self.ranks.first)
        if self.average is not None:
            self.average.update()
        return Losses.over(losses)

    def _learn(self, target: Tensor, fed: Tensor, total: int) -> tuple[Output, Losses]:
        """Add the gradients of some of a batch's images; returns both detached."""
        weight = rising(
            *self._progress(), full=self.plan.penalty_weight, warmup=self.plan.penalty_warmup
        )
        output, losses = self._judge(self.model, target, fed, weight)
        # The mean over the whole batch: gradients are averaged over the ranks.
        mean = losses.loss.sum() * (self.ranks.world / total)
        self.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
        return output.detached(), losses.detached()

    def _judge(
        self, model: nn.Module, target: Tensor, fed: Tensor, penalty_weight: float
    ) -> tuple[Output, Losses]:
        """What the network makes of the images that it is fed, and what that costs."""
        prepared = self.prepare(fed).contiguous(memory_format=torch.channels_last)
        with self.runtime.autocast():
            output = reconstruct(model, prepared)
        objective = self.objective(Prediction(output.reconstruction, output.logits), target)
        loss = objective + penalty_weight * output.penalty
        return output, Losses(loss, objective, output.penalty, output.codes)

    def _augmented(self, images: Tensor, places: Tensor) -> Tensor:
        # Drawn from the place in the run alone: a resumed run draws the same, and so do ranks.
        seed = seed_of(self.plan.seed, self.state.epoch, self.state.step)
        return self.augment(images, seed, self._everywhere(places))

    def _corrupted(self, images: Tensor, batch: Batch, split: Split) -> Tensor:
        """The images with noise, which stays with an image in validation or if it is fixed."""
        if self.corrupt is None:
            return images
        indices = batch.indices.tolist()
        if split is self.validation:
            return self.corrupt(images, noise_seeds(indices, self.plan.seed, VALIDATION))
        if self.plan.noise_fixed:
            return self.corrupt(images, noise_seeds(indices, self.plan.seed))
        places = self._everywhere(batch.places).tolist()
        key = (self.plan.seed, self.state.epoch, self.state.step)
        return self.corrupt(images, noise_seeds(places, *key))

    def _everywhere(self, places: Tensor) -> Tensor:
        """Places in this rank's part of a batch to those in the whole batch."""
        return places * self.ranks.world + self.ranks.rank

    def _set_learning_rate(self) -> None:
        rate = learning_rate(
            *self._progress(),
            peak=self.plan.peak_learning_rate,
            schedule=self.plan.schedule,
            warmup_fraction=self.plan.warmup_fraction,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _progress(self) -> tuple[int, int]:
        """Steps done, and steps of the whole run."""
        steps = self.train.batches.batches
        return self.state.epoch * steps + self.state.step, self.plan.epochs * steps

    def _pool(self) -> None:
        """Give every rank the sums over all of them."""
        parts = self.ranks.gather((self.state.sums, self.state.unreadable))
        self.state.sums = Sums.over(sums for sums, _ in parts)
        self.state.unreadable = {path: why for _, part in parts for path, why in part.items()}

    # Between epochs

    def _close_epoch(self, watch: Watch) -> None:
        """Judge the epoch that has ended; at a signal leave that to the run that goes on."""
        state = self.state
        validation = self._validate(watch)
        if validation is None:
            return
        row = EpochRow(
            state.epoch + 1,
            state.sums.loss / state.sums.images,
            *validation,
            float(self.optimizer.param_groups[0]["lr"]),
            state.seconds,
            state.sums.images / max(state.seconds, 1e-9),
            further_figures(state.sums, self.plan.penalty_name),
        )
        judged = row.loss if self.validation is None else row.validation_loss
        if not math.isfinite(judged):
            raise not_finite(state.epoch + 1, state.step)
        state.history.append(row)
        if judged < state.best_loss:
            state.best_loss, state.best_epoch = judged, row.epoch
        state.epoch += 1
        state.begin_epoch()
        logger.info(announce(row, self.plan.epochs))

    @torch.no_grad()
    def _validate(self, watch: Watch) -> tuple[float, float, float] | None:
        """Mean loss, PSNR in dB and SSIM over the validation images; NaN without any.

        None if a signal came before the last of them.
        """
        if self.validation is None:
            return math.nan, math.nan, math.nan
        model = judged(self.model, self.average, self.ranks).eval()
        columns: list[Tensor] = []
        for batch in self.validation.loader:
            if self._signal(watch) is not None:
                return None
            self._note_unreadable(batch, self.validation)
            if len(batch.indices):
                target = to_unit_range(self.runtime.send(batch.images))
                fed = self._corrupted(target, batch, self.validation)
                output, losses = self._judge(model, target, fed, self.plan.penalty_weight)
                metrics = image_metrics(output.reconstruction, target)
                columns.append(torch.stack([losses.loss.double(), metrics.psnr, metrics.ssim]))
        return mean_scores(columns, self.ranks)

    def _note_unreadable(self, batch: Batch, split: Split) -> None:
        for failure in batch.failures:
            path = split.path_of(failure.image)
            if self.plan.stop_at_unreadable:
                raise UserError(f"unreadable image: {failure.reason}")
            if path not in self.state.unreadable:
                logger.warning("Skipped: %s", failure.reason)
            self.state.unreadable[path] = failure.reason
