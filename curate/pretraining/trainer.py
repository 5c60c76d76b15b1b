"""One rank of a training: model, optimiser, and what happens in a step. No Ray, no files."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curate.dataset.augment import Augment
from curate.dataset.crops import Crops
from curate.dataset.views import Shape, shapes
from curate.embedding.backbones import build_backbone
from curate.embedding.encoders import Encoder, StateDict
from curate.errors import CurateError
from curate.methods import METHODS, Batch, Clock, Context, Method, Teacher
from curate.methods.base import of_one_size
from curate.methods.ranks import rank, world
from curate.pretraining.adapt import plain_state, prepare, rate_shares
from curate.pretraining.checkpoints import State
from curate.pretraining.optimise import build_optimizer, clip, set_rates
from curate.pretraining.plan import TrainingPlan


class Trainer:
    """Builds everything from the plan alone, the same on every rank."""

    def __init__(
        self,
        plan: TrainingPlan,
        device: torch.device,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        section: str = "pretrain",
        weights: StateDict | None = None,
        teacher: Encoder | None = None,
    ) -> None:
        """mean, std: RGB, of 0…1; the backbone's own where None. weights: of the backbone, that
        the plan begins from. teacher: of a method that needs one; is moved to the device.

        Raises CurateError for a backbone that cannot be built, or not for this method.
        """
        self.plan, self.device, self.section = plan, device, section
        recipe = plan.recipe
        vit = plan.backbone.startswith("vit")
        backbone = build_backbone(
            plan.backbone,
            plan.image_px,
            seed=plan.seed,
            small_stem=plan.small_stem,
            drop_path=float(recipe.options.get("drop_path", 0.0)) if vit else 0.0,
            any_px=any(view.side < 1 for view in recipe.views),
            section=section,
        )
        if METHODS[plan.method].needs_vit and backbone.patch_px == 1:
            raise CurateError(
                f"{section}.backbone={plan.backbone}: {plan.method} needs a vision transformer, "
                "such as vit_tiny_patch16_224 or vit_base_patch16_224"
            )
        self.mean, self.std = mean or backbone.mean, std or backbone.std
        self.feature_dim = backbone.feature_dim
        self.shapes: list[Shape] = shapes(recipe.views, plan.image_px, backbone.patch_px)
        if weights is not None:
            backbone.module.load_state_dict(weights)
        if plan.begins is not None:
            try:
                prepare(backbone.module, plan.begins, plan.seed)
            except ValueError as error:
                raise CurateError(f"{section}.init.{error}") from error
        try:
            self.method = self._build_method(backbone.module.train(), teacher)
        except ValueError as error:
            raise CurateError(f"{section}.options: {error}") from error
        self.bf16 = _wants_bf16(plan.precision, device)
        self.augment = Augment(self.mean, self.std, device, plan.image_px)
        shares = rate_shares(self.method.backbone, plan.begins) if plan.begins else None
        self.optimizer = build_optimizer(recipe.optimizer, self.method, shares)
        self.wrapped: nn.Module = self.method
        if world() > 1:
            self.wrapped = DistributedDataParallel(self.method)
            # Buffers are the same on every rank, or, as BatchNorm's averages on CPU, rank 0's
            # count. As an argument this is deprecated; its successor came long after torch 2.4
            self.wrapped.broadcast_buffers = False
        self.step_number = 0

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
            method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return method.to(self.device).to(memory_format=torch.channels_last)

    def _frozen(self, teacher: Encoder) -> Teacher:
        seen = teacher.preprocessing
        mine, its, my_std, its_std = (
            torch.tensor(figures, device=self.device).view(1, 3, 1, 1)
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
        # What is drawn in a step (drop path) depends on the step, not on what came before it
        torch.manual_seed((self.plan.seed * 1_000_003 + clock.step) * 65_537 + rank())
        rate = set_rates(self.plan.recipe.optimizer, self.optimizer, clock)
        self.method.before_step(clock)
        batch = self.batch(crops)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss, features = self.wrapped(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        except torch.cuda.OutOfMemoryError:
            raise CurateError(
                f"{self.section}.batch_size={self.plan.batch_size}: {len(batch.ids)} images a "
                "worker do not fit the GPU's memory; lower it, or add workers"
            ) from None
        self.method.after_backward()
        clip(self.plan.recipe.optimizer, self.method.parameters())
        self.optimizer.step()
        self.method.after_step()
        self.step_number += 1
        return loss.detach(), deviation(features.detach()), rate

    def batch(self, crops: Crops) -> Batch:
        """Augmented on the device; views of one size in one go."""
        views: list[Tensor] = []
        for run in of_one_size(crops.pixels):
            pixels, parameters = crops.pixels[run], crops.parameters[run]
            views += self.augment(torch.cat(pixels), torch.cat(parameters)).chunk(len(pixels))
        ids = crops.ids.to(self.device, non_blocking=True)
        labels = crops.labels.to(self.device, non_blocking=True)
        return Batch(views, ids, labels, crops.noise.to(self.device, non_blocking=True))

    def state(self) -> State:
        return {
            "step": self.step_number,
            "plan": self.plan.to_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: State) -> None:
        """Raises CurateError for a checkpoint of another architecture."""
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            there = state.get("plan", {})
            raise CurateError(
                f"the checkpoint is of {there.get('method')} on {there.get('backbone')}, not of "
                f"{self.plan.method} on {self.plan.backbone}; start over with --fresh"
            ) from error
        self.step_number = int(state["step"])


@torch.no_grad()
def deviation(features: Tensor) -> Tensor:
    """features (n, D) → the mean over channels of the standard deviation of unit rows, times √D:
    about 1 where they fill the sphere, 0 where they have collapsed. Chen & He 2021, section 4.1.
    """
    rows = nn.functional.normalize(features.float(), dim=1)
    return rows.std(0).mean() * math.sqrt(features.shape[1])


def _wants_bf16(precision: str, device: torch.device) -> bool:
    """`auto`: on a GPU that has it. A CPU does it right too, and, where it has no instructions for
    it, slowly."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"
