"""Captions that follow a template: for each slot, the value that the decoder finds most probable of all allowed ones.

Where the texts of the template branch, the decoder's probabilities of the tokens that can follow are divided by their
sum; tokens that have to follow count nothing, so that long values are not at a disadvantage. The probability of a value
is the product of these shares: with `temperature` 1, what decoding that may only follow the template would sample it
with, given the values before it. Every branching is scored once, all of a batch in one pass behind a shared cache. One
is left out where an upper bound, the share that leads to it, shows that all that are left out cannot change the result:
the choice is exact, and the probabilities are up to `EXACT`.

Shapes: B slides, n image tokens of a slide, R rows decoded together, T tokens, V size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from .captioner import CaptionDecoder
from .template_fields import Field, FilledTemplate, certain_fields, chosen_fields
from .template_tokens import Place, TemplateTokens, Way, common_prefix
from .token_trie import OpenNode, TokenTrie

EXACT = 1e-3  # share of a slot's probability that may be left out
_MOST_LOGITS = 1 << 26  # in memory at a time: 256 MB


@dataclass
class _Hypothesis:
    """A beginning of a text.

    Attributes:
        slide: Number of its slide.
        ids: Without begin token.
        total: Log probability of what is decided.
    """

    slide: int
    place: Place
    fields: dict[str, Field]
    ids: tuple[int, ...]
    total: float
    is_end: bool = False


@dataclass
class _Stage:
    """The decision of one hypothesis.

    Attributes:
        nodes: Of several ways each, not yet looked at.
        scores: {number of a way: its log probability behind the hypothesis}.
    """

    hypothesis: _Hypothesis
    ways: list[Way]
    trie: TokenTrie
    nodes: list[OpenNode] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)

    def add(self, nodes: Sequence[OpenNode]) -> None:
        """Those of one way are scored."""
        for node in nodes:
            if node.high - node.low == 1:
                self.scores[self.trie.way(node)] = node.log_probability
            else:
                self.nodes.append(node)


@dataclass(frozen=True)
class _Child:
    """What can become a hypothesis: a way of a stage, or one that is complete (`done`, stage and leaf -1)."""

    total: float
    stage: int
    leaf: int
    done: _Hypothesis | None


@dataclass(frozen=True)
class _Row:
    """A branching to be scored.

    Attributes:
        ids: Of the text down to it, without begin token.
        next_ids: What can follow.
    """

    stage: int
    node: OpenNode
    ids: tuple[int, ...]
    next_ids: tuple[int, ...]


@torch.no_grad()
def fill_template(decoder: CaptionDecoder, image_tokens: torch.Tensor, tokens: TemplateTokens, *, num_beams: int = 1,
                  temperature: float = 1.0, exact: float = EXACT) -> list[FilledTemplate]:
    """The template filled for each of B slides.

    Args:
        image_tokens: (B, n, D), in the type that the decoder takes.
        num_beams: Beginnings of texts kept after each decision, by their log probability; 1 = the best value each time.
        temperature: From calibration; log probabilities are divided by it before they are normalized.
        exact: Share of a decision's probability that may be left out; 0 scores all values.

    Raises:
        UserError: A text that the tokenizer cannot write.
    """
    decided, place = tokens.start()
    if tokens.template.is_end(place.node):  # the template has one text
        return [FilledTemplate(place.text, certain_fields(decided)) for _ in image_tokens]
    search = _Search(decoder, tokens, num_beams, temperature, exact)
    return search.run(image_tokens)


class _Search:
    """The hypotheses of a batch, with a cache of the tokens that they all have, `self._length` in number."""

    def __init__(self, decoder: CaptionDecoder, tokens: TemplateTokens, num_beams: int, temperature: float,
                 exact: float) -> None:
        self._decoder, self._tokens = decoder, tokens
        self._beams, self._temperature, self._exact = num_beams, temperature, exact
        self._bos = tokens.tokenizer.bos_id
        self._length = 0

    def run(self, image_tokens: torch.Tensor) -> list[FilledTemplate]:
        """See `fill_template`."""
        self._device = image_tokens.device
        _, self._context = self._decoder.embed_image(image_tokens=image_tokens)
        self._cache = self._decoder.start_decoding(self._context)
        finished: list[list[_Hypothesis]] = [[] for _ in image_tokens]
        running = self._begin(len(image_tokens))
        while running:
            running = self._decide(running, finished)
        return [self._filled(max(slide, key=lambda hypothesis: hypothesis.total)) for slide in finished]

    def _decide(self, running: list[_Hypothesis], finished: list[list[_Hypothesis]]) -> list[_Hypothesis]:
        """The hypotheses after the next decision of each; complete ones are in `finished`, a list for each slide."""
        stages = self._stages(running)
        while rows := self._rows(stages):
            self._score(rows, stages)
        going_on: list[tuple[int, _Hypothesis]] = []
        for slide, complete in enumerate(finished):
            best = self._best(self._children(slide, complete, stages), stages)
            finished[slide], unfinished = self._grown(best, stages)
            going_on += unfinished
        self._advance(going_on)
        return [hypothesis for _, hypothesis in going_on]

    def _grown(self, children: Sequence[_Child],
               stages: Sequence[_Stage]) -> tuple[list[_Hypothesis], list[tuple[int, _Hypothesis]]]:
        """The hypotheses that children become: the complete ones, and the others with the numbers of their stages."""
        complete: list[_Hypothesis] = []
        going_on: list[tuple[int, _Hypothesis]] = []
        for child in children:
            hypothesis = child.done or self._child(stages[child.stage], child.leaf)
            if hypothesis.is_end:
                complete.append(hypothesis)
            else:
                going_on.append((child.stage, hypothesis))
        return complete, going_on

    def _children(self, slide: int, complete: list[_Hypothesis], stages: Sequence[_Stage]) -> list[_Child]:
        """All that a slide's hypotheses can become."""
        children = [_Child(hypothesis.total, -1, -1, hypothesis) for hypothesis in complete]
        for number, stage in enumerate(stages):
            if stage.hypothesis.slide == slide:
                total = stage.hypothesis.total
                children += [_Child(total + score, number, leaf, None) for leaf, score in stage.scores.items()]
        return children

    def _filled(self, hypothesis: _Hypothesis) -> FilledTemplate:
        template = self._tokens.template
        fields = {name: hypothesis.fields[name] for name in template.slots}
        return FilledTemplate(template.render({name: found.value for name, found in fields.items()}), fields)

    def _begin(self, num_slides: int) -> list[_Hypothesis]:
        """The text before the first decision, read in one pass."""
        decided, place = self._tokens.start()
        ids = common_prefix([way.ids for way in self._tokens.ways(place)])
        self._length, self._cached = 0, num_slides
        running = [_Hypothesis(slide, place, certain_fields(decided), ids, 0.0) for slide in range(num_slides)]
        self._advance(list(enumerate(running)))
        return running

    def _stages(self, running: Sequence[_Hypothesis]) -> list[_Stage]:
        stages = [self._stage(hypothesis) for hypothesis in running]
        needed = min(len(hypothesis.ids) for hypothesis in running)  # the last id is read where the next one is scored
        if self._length > needed:
            self._cache = self._decoder.start_decoding(self._context)
            self._length, self._cached = 0, -1
            self._read([hypothesis.slide for hypothesis in running], running, needed)
        return stages

    def _stage(self, hypothesis: _Hypothesis) -> _Stage:
        ways = self._tokens.ways(hypothesis.place)
        hypothesis.ids = common_prefix([hypothesis.ids, *(way.ids for way in ways)])  # further text may change some
        stage = _Stage(hypothesis, ways, TokenTrie([way.ids for way in ways], len(hypothesis.ids)))
        stage.add([stage.trie.root])
        return stage

    # --- scoring

    def _rows(self, stages: Sequence[_Stage]) -> list[_Row]:
        """What has to be scored next; none if every stage is decided."""
        return [_Row(number, node, *stage.trie.branching(node))
                for number, stage in enumerate(stages) for node in self._to_expand(stage)]

    def _to_expand(self, stage: _Stage) -> list[OpenNode]:
        """The most probable open nodes, all but those that together cannot matter; they leave `stage.nodes`."""
        scores = list(stage.scores.values())
        highest = max(scores + [node.log_probability for node in stage.nodes])
        nodes = sorted(stage.nodes, key=lambda node: -node.bound(self._temperature, highest))
        bounds = [node.bound(self._temperature, highest) for node in nodes]
        known = sum(math.exp((score - highest) / self._temperature) for score in scores)
        allowed = self._exact * (known or sum(bounds))
        num_left_out = self._num_left_out(nodes, bounds, allowed, sorted(scores, reverse=True)[:self._beams])
        kept = len(nodes) - num_left_out
        stage.nodes = nodes[kept:]
        return nodes[:kept]

    def _num_left_out(self, nodes: Sequence[OpenNode], bounds: Sequence[float], allowed: float,
                      best: list[float]) -> int:
        """How many nodes at the end cannot be among the beams, and together have no more than is allowed.

        Args:
            bounds: Of the nodes, falling.
            best: Scores of the best ways that are known.
        """
        number = 0
        for node, rest in zip(reversed(nodes), accumulate(reversed(bounds)), strict=True):
            if rest > allowed or not self._cannot_win(node, best):
                break
            number += 1
        return number

    def _cannot_win(self, node: OpenNode, best: list[float]) -> bool:
        """Whether no way of a node can be among the beams. Before anything is scored, left open."""
        return not best or (len(best) == self._beams and node.log_probability <= best[-1])

    def _score(self, rows: Sequence[_Row], stages: Sequence[_Stage]) -> None:
        """Score rows in as many passes as memory needs."""
        longest = max(len(row.ids) for row in rows) + 1 - self._length
        most = max(1, _MOST_LOGITS // (longest * max(1, len(self._tokens.tokenizer))))
        for begin in range(0, len(rows), most):
            part = rows[begin:begin + most]
            for row, shares in zip(part, self._shares(part), strict=True):
                stages[row.stage].add(stages[row.stage].trie.children(row.node, shares))

    def _shares(self, rows: Sequence[_Row]) -> list[dict[int, float]]:
        """One pass: for each of R rows {token that can follow: log of its share of all that can}."""
        texts = [(self._bos, *row.ids)[self._length:] for row in rows]
        longest, most = max(map(len, texts)), max(len(row.next_ids) for row in rows)
        pad = self._tokens.tokenizer.pad_id
        cache = self._cache.select(self._tensor([row.stage for row in rows]))
        ids = self._tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
        logits = self._decoder.decode_text(ids, cache)
        last = logits[torch.arange(len(rows), device=self._device), self._tensor([len(text) - 1 for text in texts])]
        wanted = self._tensor([[*row.next_ids, *[0] * (most - len(row.next_ids))] for row in rows])
        absent = self._tensor([len(row.next_ids) for row in rows])[:, None] <= torch.arange(most, device=self._device)
        found = last.float().gather(1, wanted).masked_fill(absent, -math.inf).log_softmax(-1).tolist()  # (R, most)
        return [dict(zip(row.next_ids, shares, strict=False)) for row, shares in zip(rows, found, strict=True)]

    def _tensor(self, numbers: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._device)

    # --- decisions

    def _best(self, children: list[_Child], stages: Sequence[_Stage]) -> list[_Child]:
        """The best children of a slide, in the order of their stages, and none that cannot become the best text."""
        best = sorted(children, key=lambda child: -child.total)[:self._beams]  # stable: of equal ones the first
        ends = [child.total for child in best if child.done or stages[child.stage].ways[child.leaf].is_end]
        least = max(ends, default=-math.inf)  # a text that goes on does not become more probable
        return sorted((child for child in best if child.total >= least), key=lambda child: child.stage)

    def _child(self, stage: _Stage, leaf: int) -> _Hypothesis:
        parent, way = stage.hypothesis, stage.ways[leaf]
        scored = [(stage.ways[other].decided, score) for other, score in stage.scores.items()]
        fields = parent.fields | chosen_fields(way.decided, scored, self._temperature)
        return _Hypothesis(parent.slide, way.place, fields, way.ids, parent.total + stage.scores[leaf],
                           way.is_end)

    def _advance(self, kept: Sequence[tuple[int, _Hypothesis]]) -> None:
        """Give the cache the rows of the kept hypotheses and of each as many tokens as the shortest has, but its last.

        Args:
            kept: Each with the number of the row it continues.
        """
        if not kept:
            return
        hypotheses = [hypothesis for _, hypothesis in kept]
        self._read([row for row, _ in kept], hypotheses, min(len(hypothesis.ids) for hypothesis in hypotheses))

    def _read(self, rows: list[int], hypotheses: Sequence[_Hypothesis], length: int) -> None:
        """Give the cache a row for each hypothesis, which continues the row of this number, and `length` tokens."""
        if rows != list(range(self._cached)):
            self._cache = self._cache.select(torch.tensor(rows, device=self._device))
        self._cached = len(rows)
        ids = [(self._bos, *hypothesis.ids)[self._length:length] for hypothesis in hypotheses]
        if ids[0]:
            self._decoder.decode_step(torch.tensor(ids, device=self._device), self._cache)
            self._length = length
