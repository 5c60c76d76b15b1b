"""One rank of a training: model, optimiser, and what happens in a step. No Ray, no files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curate.dataset.augment import Augment
from curate.dataset.crops import Crops, parts_of
from curate.dataset.cut import cut
from curate.dataset.views import Shape, shapes
from curate.embedding.backbones import build_backbone
from curate.embedding.encoders import Encoder, StateDict
from curate.errors import CurateError
from curate.methods import METHODS, Batch, Clock, Context, Method, Teacher
from curate.methods.base import of_one_size
from curate.methods.ranks import group, rank, world
from curate.pretraining.accumulate import backward_in_parts
from curate.pretraining.adapt import plain_state, prepare, rate_shares
from curate.pretraining.checkpoints import State
from curate.pretraining.optimise import build_optimizer, clip, set_rates
from curate.pretraining.plan import TrainingPlan
from curate.pretraining.precision import Precision


class Trainer:
    """Builds everything from the plan alone, the same on every rank."""

    def __init__(
        self,
        plan: TrainingPlan,
        device: torch.device,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        section: str = "pretrain",
        weights: StateDict | None = None,
        teacher: Encoder | None = None,
        *,
        compiled: bool = False,
        recomputed: bool = False,
        parts: int | None = None,
    ) -> None:
        """mean, std: of each channel, of 0…1; the backbone's own where None. weights: of the
        backbone, that the plan begins from. teacher: of a method that needs one; is moved to the
        device. compiled: by torch.compile. recomputed: activations are, in the backward pass.
        parts: that a batch is worked off in; as the plan says where None.

        Raises CurateError for a backbone that cannot be built, or not for this method.
        """
        self.plan, self.device, self.section = plan, device, section
        self.parts = parts or plan.accumulate or 1
        recipe = plan.recipe
        vit = plan.backbone.startswith("vit")
        backbone = build_backbone(
            plan.backbone,
            plan.image_px,
            seed=plan.seed,
            small_stem=plan.small_stem,
            drop_path=float(recipe.options.get("drop_path", 0.0)) if vit else 0.0,
            any_px=any(view.side < 1 for view in recipe.views),
            channels=plan.channels or 3,
            section=section,
        )
        if METHODS[plan.method].needs_vit and backbone.patch_px == 1:
            raise self._no_transformer()
        self.mean, self.std = mean or backbone.mean, std or backbone.std
        self.feature_dim = backbone.feature_dim
        self.shapes: list[Shape] = shapes(recipe.views, plan.image_px, backbone.patch_px)
        self._begin(backbone.module, weights)
        try:
            self.method = self._build_method(backbone.module.train(), teacher)
        except ValueError as error:
            raise CurateError(f"{section}.options: {error}") from error
        if recomputed:
            self._recompute()
        if compiled:
            _compile(self.method)
        self.precision = Precision.of(plan.precision, device)
        self.scaler = self.precision.scaler()
        self.augment = Augment(self.mean, self.std, device, plan.image_px)
        shares = rate_shares(self.method.backbone, plan.begins) if plan.begins else None
        self.optimizer = build_optimizer(
            recipe.optimizer, self.method, shares, fused=device.type == "cuda"
        )
        self.wrapped = self._for_all_ranks()
        self.step_number = 0

    def _no_transformer(self) -> CurateError:
        return CurateError(
            f"{self.section}.backbone={self.plan.backbone}: {self.plan.method} needs a vision "
            "transformer, such as vit_tiny_patch16_224 or vit_base_patch16_224"
        )

    def _for_all_ranks(self) -> nn.Module:
        """The method, or DDP around it."""
        if world() == 1:
            return self.method
        # Gradients lie in the buckets that are sent: one copy of them less
        wrapped = DistributedDataParallel(
            self.method, gradient_as_bucket_view=True, process_group=group()
        )
        # Buffers are the same on every rank, or, as BatchNorm's averages on CPU, rank 0's count.
        # As an argument this is deprecated; its successor came long after torch 2.4
        wrapped.broadcast_buffers = False
        return wrapped

    def _begin(self, module: nn.Module, weights: StateDict | None) -> None:
        if weights is not None:
            module.load_state_dict(weights)
        if self.plan.begins is not None:
            try:
                prepare(module, self.plan.begins, self.plan.seed)
            except ValueError as error:
                raise CurateError(f"{self.section}.init.{error}") from error

    def _build_method(self, backbone: nn.Module, teacher: Encoder | None) -> Method:
        plan = self.plan
        context = Context(
            feature_dim=self.feature_dim,
            images=plan.images,
            view_px=plan.image_px,
            global_views=sum(shape.view.count for shape in self.shapes if shape.view.side == 1),
            options=plan.recipe.options,
            begun=plan.begins is not None,
            teacher=self._frozen(teacher) if teacher is not None else None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            method = METHODS[plan.method](backbone, context)
        if self.device.type == "cuda" and world() > 1:
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method, group())
        return method.to(self.device).to(memory_format=torch.channels_last)

    def _recompute(self) -> None:
        try:
            cast("Any", self.method.backbone).set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise CurateError(
                f"{self.section}.resources.checkpoint_activations=true: {self.plan.backbone} "
                "cannot; leave it out"
            ) from error

    def _frozen(self, teacher: Encoder) -> Teacher:
        seen = teacher.preprocessing
        mine, its, my_std, its_std = (
            torch.tensor(figures, device=self.device).view(1, -1, 1, 1)
            for figures in (self.mean, seen.mean, self.std, seen.std)
        )
        module = teacher.module.eval().requires_grad_(False).to(self.device)
        return Teacher(
            module.to(memory_format=torch.channels_last),
            teacher.feature_dim,
            seen.image_px,
            scale=my_std / its_std,
            shift=(mine - its) / its_std,
        )

    def encoder_state(self) -> StateDict:
        """What is kept of the training, for timm's own architecture."""
        return plain_state(self.method.encoder())

    def clock(self) -> Clock:
        return Clock(self.step_number, self.plan.steps, self.plan.steps_per_epoch)

    def step(self, crops: Crops) -> tuple[Tensor, Tensor, float]:
        """→ the loss and the embeddings' deviation, still on the device, and the learning rate."""
        clock = self.clock()
        rate = set_rates(self.plan.recipe.optimizer, self.optimizer, clock)
        self.method.before_step(clock)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss, features = self._backward(crops)
        except torch.cuda.OutOfMemoryError:
            raise CurateError(
                f"{self.section}.batch_size={self.plan.batch_size}: {len(crops.ids)} images a "
                "worker do not fit the GPU's memory; raise accumulate, lower it, or add workers"
            ) from None
        self.scaler.unscale_(self.optimizer)
        self.method.after_backward()
        clip(self.plan.recipe.optimizer, self.method.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        self.step_number += 1
        self.seen = features.detach()  # (V·n, D)
        return loss, deviation(features.detach()), rate

    def _backward(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """→ the loss and the features; the gradients are in the weights."""
        if self.parts == 1:
            batch = self.batch(crops)
            with self._drawing(0):
                loss, features = self.wrapped(batch)
            self.scaler.scale(loss).backward()
            return loss.detach(), features
        makers = [partial(self.batch, part) for part in parts_of(crops, self.parts)]
        ids, labels = (x.to(self.device, non_blocking=True) for x in (crops.ids, crops.labels))
        whole = Batch([], ids, labels, crops.noise)
        return backward_in_parts(
            self.method, self.wrapped, makers, whole, self._drawing, self.scaler.scale
        )

    @contextmanager
    def _drawing(self, part: int) -> Iterator[None]:
        """What is drawn in a step (drop path) depends on the step, not on what came before it."""
        step = (self.plan.seed * 1_000_003 + self.step_number) * 65_537 + rank()
        torch.manual_seed(step + part * 1_000_000_007)
        with self.precision.autocast():
            yield

    def batch(self, crops: Crops) -> Batch:
        """Augmented on the device; views of one size in one go."""
        views = self._views(crops)
        ids = crops.ids.to(self.device, non_blocking=True)
        labels = crops.labels.to(self.device, non_blocking=True)
        return Batch(views, ids, labels, crops.noise.to(self.device, non_blocking=True))

    def _views(self, crops: Crops) -> list[Tensor]:
        views: list[Tensor] = []
        if crops.boxes is not None:
            images = crops.pixels[0].to(self.device, non_blocking=True)
            for shape in self.shapes:
                own = range(len(views), len(views) + shape.view.count)
                bicubic = shape.view.bicubic
                cuts = [cut(images, crops.boxes[:, v], shape.px, bicubic=bicubic) for v in own]
                changes = torch.cat([crops.parameters[v] for v in own])
                views += self.augment.changed(torch.cat(cuts), changes).chunk(len(cuts))
            return views
        for run in of_one_size(crops.pixels):
            pixels, parameters = crops.pixels[run], crops.parameters[run]
            views += self.augment(torch.cat(pixels), torch.cat(parameters)).chunk(len(pixels))
        return views

    def state(self) -> State:
        return {
            "step": self.step_number,
            "plan": self.plan.to_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: State) -> None:
        """Raises CurateError for a checkpoint of another architecture."""
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state.get("scaler", {}))
        except (RuntimeError, ValueError, KeyError) as error:
            there = state.get("plan", {})
            raise CurateError(
                f"the checkpoint is of {there.get('method')} on {there.get('backbone')}, not of "
                f"{self.plan.method} on {self.plan.backbone}; start over with --fresh"
            ) from error
        self.step_number = int(state["step"])


def _compile(method: Method) -> None:
    """The backbone, and the ones that follow it: a transformer's blocks, which have one shape for
    each size of view, or all of another network. Names of weights stay as they are."""
    for name, module in method.named_children():
        if name.endswith("backbone"):
            blocks = getattr(module, "blocks", None)
            for part in blocks if isinstance(blocks, nn.Sequential) else [module]:
                part.compile()


@torch.no_grad()
def deviation(features: Tensor) -> Tensor:
    """features (n, D) → the mean over channels of the standard deviation of unit rows, times √D:
    about 1 where they fill the sphere, 0 where they have collapsed. Chen & He 2021, section 4.1.
    """
    rows = nn.functional.normalize(features.float(), dim=1)
    return rows.std(0).mean() * math.sqrt(features.shape[1])
