"""A line of explanation for each score, in Chinese and English: what a number on a page means."""

from __future__ import annotations

Text = tuple[str, str]

_RECALL = ("自己的文本排进前 K 名的切片比例（相同的文本都算对）",
           "share of slides whose own text is among the first K (equal texts are all right)")
_RECALL_BACK = ("自己的切片排进前 K 名的文本比例", "share of texts whose own slide is among the first K")
_RANK = ("正确答案排名的中位数，1 最好", "median rank of the right answer, 1 is best")
NOTES: dict[str, Text] = {
    "loss": (
        "两项损失按权重相加，越低越好",
        "the weighted sum of the losses, lower is better"),
    "caption_loss": (
        "写出参考文本每个词元的平均惊讶程度，越低越好；验证线升高而训练线下降是过拟合",
        "mean surprise at each token of the references, lower is better; overfitting where the validation line "
        "rises and the training line falls"),
    "contrastive_loss": (
        "把切片与自己的文本配对的难度，越低越好",
        "how hard it is to match slides and texts, lower is better"),
    "shuffled_gap": (
        "换成别的切片后描述损失增加多少；接近 0 说明描述与切片无关",
        "how much the caption loss rises with other slides; near 0 captions do not depend on their slides"),
    "distinct_captions": (
        "验证时前几张切片中不同描述的比例；接近 0 说明千篇一律",
        "share of different captions of the first slides; near 0 all are the same"),
    "bleu_1": (
        "单词相同的比例",
        "share of equal words"),
    "bleu_2": (
        "连续 2 个词相同的比例",
        "share of equal pairs of words"),
    "bleu_3": (
        "连续 3 个词相同的比例",
        "share of equal runs of 3 words"),
    "bleu_4": (
        "连续 4 个词（汉字）与参考相同的比例，论文最常报告",
        "share of equal runs of 4 words (Chinese characters), what papers report most"),
    "chrf": (
        "字符片段的相同程度",
        "how alike the runs of characters are"),
    "rouge_l": (
        "最长的共同词序列占多少，0–1",
        "how much the longest common sequence of words covers, 0-1"),
    "token_alignment": (
        "相同词元的精确率与召回率，惩罚乱序；不是论文里的 METEOR",
        "precision and recall of equal tokens, minus disorder; not the METEOR of papers"),
    "cider": (
        "越少见的词越重要的相似度，0–10；全部相同为 10",
        "likeness where rare words weigh more, 0-10; equal texts have 10"),
    "exact_match": (
        "与任一参考文本一字不差的比例，最严格",
        "share equal to a reference word for word, the strictest score"),
    "acceptable_match": (
        "换成同一种说法、不计分句顺序后与参考相同的比例",
        "share equal to a reference once synonyms of findings and the order of clauses are set aside"),
    "safe_match": (
        "没有把恶性、侵犯、转移说反的比例；什么都不说也算，须与上一项同看",
        "share that do not reverse malignancy, invasion or metastasis; saying nothing is safe too: read it with the "
        "share above"),
    "distinct_share": (
        "互不相同的描述的比例",
        "share of captions that differ from each other"),
    "text_findings": (
        "文本相似（ROUGE、BLEU，按字）与发现一致的加权和，0–1",
        "weighted likeness of the text (ROUGE, BLEU by character in Chinese) and of its findings, 0-1"),
    "image_to_text_r1": _RECALL,
    "image_to_text_r5": _RECALL,
    "image_to_text_r10": _RECALL,
    "text_to_image_r1": _RECALL_BACK,
    "text_to_image_r5": _RECALL_BACK,
    "text_to_image_r10": _RECALL_BACK,
    "image_to_text_median_rank": _RANK,
    "text_to_image_median_rank": _RANK,
    "zero_shot_balanced_accuracy": (
        "各类别召回率的平均",
        "mean recall of the classes"),
    "zero_shot_auroc": (
        "正例得分高于反例的概率",
        "probability that a positive scores above a negative"),
    "finding_presence_precision": (
        "描述说有的发现，参考也说有的比例",
        "share of findings asserted that the reference asserts"),
    "finding_presence_recall": (
        "参考说有的发现，描述也说有的比例",
        "share of findings of the reference that are asserted"),
    "finding_absence_precision": (
        "描述说无的发现，参考也说无的比例",
        "share of findings denied that the reference denies"),
    "finding_absence_recall": (
        "参考说无的发现，描述也说无的比例",
        "share of findings the reference denies that are denied"),
    "finding_contradictions": (
        "参考说无而描述说有，或相反：每张切片几处",
        "one asserts what the other denies: how many per slide"),
    "reg2025_rouge": (
        "REG2025 公式里的 ROUGE 部分",
        "the ROUGE part of the REG2025 formula"),
    "reg2025_bleu": (
        "REG2025 公式里的 BLEU 部分",
        "the BLEU part of the REG2025 formula"),
    "reg2025_keywords": (
        "REG2025 公式里的关键词部分：描述与参考的关键词重合多少",
        "the keyword part of the REG2025 formula: how far keywords of caption and reference agree"),
    "reg2025_embedding": (
        "REG2025 公式里的句向量部分：描述与参考的余弦",
        "the embedding part of the REG2025 formula: the cosine of caption and reference"),
    "reg2025": (
        "REG2025 比赛的排名分数，四部分的加权和",
        "the ranking score of the REG2025 challenge, a weighted sum of the four parts"),
}


def note(name: str) -> Text:
    """What a score means; empty for one that is not known."""
    return NOTES.get(name, ("", ""))
