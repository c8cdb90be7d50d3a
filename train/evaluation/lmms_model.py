"""A VideoLLM as lmms-eval runs models: tasks that generate text from pictures and videos."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.model import lmms
from rich.progress import track

from stream.session import Session
from train.evaluation.watching import answer
from videollm.cli.loading import load_model

NEVER = 0.0  # speak when silence is less probable than this: only where asked


class VideoLLMForLmmsEval(lmms):
    """One model; `fps` are the frames a second that it sees of a video, its own where not given."""

    is_simple = True

    def __init__(
        self, pretrained: str = "pocket", device: str | None = None, fps: float | None = None, **kwargs: Any
    ) -> None:
        self.pretrained = pretrained  # names the cache of answers
        super().__init__()
        model = load_model(pretrained, device or "auto")
        self._fps = fps or model.config.fps
        self._session = Session(model, threshold=NEVER)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """An answer a request; a session's replies end by themselves, so that `until` isn't needed."""
        answers = []
        for request in track(requests, "lmms-eval"):
            context, _, visuals_of, doc_id, task, split = request.args
            visuals = visuals_of(self.task_dict[task][split][doc_id]) or []
            said = answer(self._session, visuals, context, self._fps)
            self.cache_hook.add_partial("generate_until", (context, request.args[1]), said)
            answers.append(said)
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("videollm answers in words; choose tasks that generate")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("videollm is asked once a request; choose tasks of one round")
