"""Chinese for the pages: warnings of the log, faults of a slide's file, names of facts.

The log and the terminal speak English only. A warning is known by its format; one that is not here stays English.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

# Format of a warning, as in the call of the logger -> Chinese, its values by number
WARNINGS = {
    "%s has lost %d bytes of its first %d: was it edited?": "{0} 的前 {2} 字节少了 {1} 字节：文件被改过吗？",
    "training.report_to: %s failed, its curves end here (%s: %s)":
        "training.report_to：{0} 出错，它的曲线到此为止（{1}：{2}）",
    "%s could not be written (%s: %s)": "{0} 写不出（{1}：{2}）",
    "confidence: on slides that did not fit it the probability says no more than how often captions are right: more "
    "validation slides are needed": "置信度：在没有参与拟合的切片上，它只说明描述多常正确：需要更多验证切片",
    "%s is gone: no calibration, no %s": "{0} 不见了：没有校准，也没有 {1}",
    "on the held-out slides the captioner is no better than looking up (%s: %s %.2f against %.2f): try more training "
    "slides, another model.size (small is the smallest), or another training.learning_rate; docs/scoring.md says how "
    "to read this":
        "在留出的切片上，模型不比查找好（{0}：{1} {2}，模型 {3}）：可以试更多训练切片、"
        "别的 model.size（small 最小）或别的 training.learning_rate；怎么看见 docs/scoring.md",
    "%s of epoch %d is NaN and is ignored": "第 {1} 轮的 {0} 是 NaN，不计",
    "confidence: %d validation slides with %d wrong tokens cannot show that the model is more often right than it says "
    "(that takes %d and %d): temperature %.2f instead of %.2f":
        "置信度：{0} 张验证切片、{1} 个错误词元不足以说明模型比它自己说的更常对（至少要 {2} 张和 {3} 个）："
        "温度取 {4}，不取 {5}",
    "confidence: temperature %.2f does not pay on slides that did not fit it: it stays 1":
        "置信度：温度 {0} 在没有参与拟合的切片上没有好处，保持为 1",
    "confidence: temperature %.2f is the end of what is tried: the confidence may still be off":
        "置信度：温度 {0} 已是尝试范围的一端，置信度可能仍有偏差",
    "%s: stopping here, where all that was trained is saved": "收到 {0}：就此停止，已训练的都已保存",
    "%s and %d more files of the slide cache have a wrong size: encoded again":
        "切片缓存的 {0} 等另外 {1} 个文件大小不对，重新编码",
    "slide cache: %s: %s; it is encoded again": "切片缓存：{0}：{1}；重新编码",
    "out of memory: %d slides are encoded together instead of %d": "内存不足：一起编码 {0} 张切片，原为 {1} 张",
    "%s: finishing the step, then saving to %s": "收到 {0}：做完这一步，保存到 {1}",
    "data.views is %d, but slides are encoded anew in every epoch: there are no views":
        "data.views 为 {0}，但每轮都重新编码切片：没有不同的视图",
    "the last batch of an epoch would have %d slide, hence no contrastive loss: it is dropped":
        "每轮最后一批只有 {0} 张切片，没有对比损失：舍去",
    "stopped by %s after step %d; rerun with --resume auto": "第 {1} 步后被 {0} 停止；用 --resume auto 继续",
    "out of memory: micro-batches are halved (%d times over all processes, %s slides here), the effective batch is "
    "unchanged": "内存不足：微批次减半（各进程共 {0} 次，这里是 {1} 张切片），等效批量不变",
    "training.precision is %s, used is %s: %s": "training.precision 为 {0}，实际用 {1}：{2}",
    "resuming from %s: %s is replaced by it": "从 {0} 继续：{1} 换成它",
    "resuming from %s, after epoch %d of %d: later epochs go from metrics.jsonl and from the curves, %s is replaced by "
    "it, %s%s": "从 {0}（第 {1} 轮，共 {2} 轮）继续：之后各轮从 metrics.jsonl 和曲线里去掉，{3} 换成它，{4}{5}",
    "wandb: its run has epoch %d already and cannot take it back: the curves go on in a new one":
        "wandb：那次运行已有第 {0} 轮，收不回来：曲线在新的运行里继续",
    "%s: %s; resuming from %s instead": "{0}：{1}；改从 {2} 继续",
    "%s was %s, now %s: the resumed run may differ in the last bits":
        "{0} 原为 {1}，现为 {2}：续训的结果可能在末位有差别",
    "the validation loss hardly changes when slides are exchanged (gap %s of %s): captions do not depend on their "
    "slides": "交换切片后验证损失几乎不变（差 {0}，损失 {1}）：描述与切片无关",
    "one and the same caption for %s slides with %s different texts":
        "{0} 张切片的描述完全相同，而它们有 {1} 种不同的文本",
    "%s of %s validation captions did not come to their end within data.max_seq_len %s (finished: false in %s)":
        "{1} 条验证描述中有 {0} 条在 data.max_seq_len {2} 之内没有写完（{3} 里 finished: false）",
    "%s: %d weights are of a wrapped model, as %s": "{0}：{1} 个权重来自包装过的模型，例如 {2}",
    "%s cannot be read (%s): all headers are read again": "{0} 读不了（{1}）：重读全部文件头",
    "%s cannot be written (%s): the next run reads all headers again": "{0} 写不出（{1}）：下次运行重读全部文件头",
    "%s cannot be written (%s): the next run compares the texts again": "{0} 写不出（{1}）：下次运行重新比较文本",
    "%d of %d %s texts are near duplicates of training texts (%.0f %% of their trigrams or more): scores on them say "
    "little about new cases":
        "{1} 条 {2} 文本中有 {0} 条与训练文本几乎相同（三字组相同 {3} % 以上）："
        "它们的分数说明不了新病例",
    "%d TCGA patients have slides in training and held out: set data.group_pattern to '^%s'":
        "{0} 名 TCGA 患者的切片既在训练集又被留出：把 data.group_pattern 设为 '^{1}'",
    "%d pairs of ids in training and held out, such as %s and %s, may be of one patient or region: if so, scores on "
    "held-out slides are too high; set data.group_pattern or data.split_file":
        "训练集与留出的切片中有 {0} 对编号（如 {1} 和 {2}）可能属于同一患者或区域：若是，留出切片的分数偏高；"
        "请设 data.group_pattern 或 data.split_file",
    "%d held-out labels, such as %s, have the same %s as labels in training: scores on held-out slides are too high; "
    "set data.group_pattern or data.split_file":
        "{0} 个留出的标签（如 {1}）与训练集的标签有相同的 {2}：留出切片的分数偏高；"
        "请设 data.group_pattern 或 data.split_file",
    "%d ids of %s have no label: %s ...": "{1} 里有 {0} 个编号没有标签：{2} ...",
    "no validation slides (data.val_split is 0): best_model.pth is the last one":
        "没有验证切片（data.val_split 为 0）：best_model.pth 就是最后一轮",
    "skipped %s": "跳过 {0}",
    "%s of %s slides cannot be used and are skipped": "{1} 张切片中有 {0} 张不可用，已跳过",
    "%d H5 files have several ids, such as %s: they count more than once":
        "{0} 个 H5 文件有多个编号，如 {1}：它们不止算一次",
    "%d of %d training texts repeat another one: equal texts are not negatives of each other":
        "{1} 条训练文本中有 {0} 条与另一条相同：相同的文本互不作为负样本",
    "%d of %d training texts change when they are encoded and decoded by the tokenizer; so will captions":
        "{1} 条训练文本中有 {0} 条经分词器编码再解码后有变化；描述也会如此",
    "%d of %d %s texts are longer than data.max_seq_len %d and are cut (the longest has %d tokens)":
        "{1} 条 {2} 文本中有 {0} 条超过 data.max_seq_len {3}，被截断（最长 {4} 个词元）",
    "%.2f %% of the %s tokens are unknown to the vocabulary": "{1} 文本中 {0} % 的词元不在词表里",
}
# What is wrong with an uploaded file, in words for somebody who only sees the page: (Chinese, English)
FAULTS = {
    "not an HDF5 file (starts with %s)": ("不是 HDF5 文件", "is not an HDF5 file"),
    "not a file of torch 1.6 or newer (starts with %s)": ("不是 PyTorch 的 .pt 文件", "is not a .pt file of PyTorch"),
    "truncated (%s": ("文件不完整，请重新复制", "is truncated: copy it again"),
    "cannot be read (%s": ("读不了，请重新复制，或重新提取特征", "cannot be read: copy it again, or extract it again"),
    "empty file": ("文件是空的，请重新复制", "is empty: copy it again"),
    "0 tiles": ("没有图块，请重新提取这张切片的特征", "holds no tile: extract its features again"),
    "no dataset %s; the file has: %s":
        ("没有图块特征；文件里只有：{1}", "holds no tile features, only: {1}"),
    "tiles are %s wide, data.image_dim is %s":
        ("图块特征是 {0} 维，这个模型需要 {1} 维：请用同一个图块编码器的特征",
         "has tiles {0} wide, this model takes {1}: use features of the same tile encoder"),
    "tiles of the encoder %s, expected %s":
        ("图块来自编码器 {0}，这个模型需要 {1}", "has tiles of the encoder {0}, this model takes {1}"),
    "%s is %s, expected (N, %s)":
        ("特征矩阵的形状是 {1}，应为 (N, {2})", "has features of shape {1}, expected (N, {2})"),
    "%s has type %s, expected floats": ("特征的类型是 {1}，应为浮点数", "has features of type {1}, expected floats"),
    "holds %s, expected floats": ("特征的类型是 {0}，应为浮点数", "has features of type {0}, expected floats"),
    "holds a %s, expected a tensor (N, D)": ("里面是 {0}，应为张量 (N, D)", "holds a {0}, expected a tensor (N, D)"),
    "holds objects other than tensors, or is damaged":
        ("里面不只是张量，或已损坏", "holds objects other than tensors, or is damaged"),
    "is a dict of: %s": ("是一个字典（{0}），不知道哪一项是特征", "is a dict ({0}): which entry has the features?"),
    "has several matrices of features: %s": ("有不止一个特征矩阵：{0}", "has several matrices of features: {0}"),
    "this is a %s-level file of STAMP": ("是 STAMP 的 {0} 级文件，不是图块特征", "is a {0}-level file, not of tiles"),
    "%s is a group": ("{0} 是一个组，不是数据集", "{0} in it is a group"),
    "%s points outside the file": ("{0} 指向文件之外", "{0} in it points outside the file"),
    "%s is a link that may point outside the file": ("{0} 是可能指向文件之外的链接", "{0} in it is a link"),
    "compressed with %s": ("用了这台电脑上没有的压缩方式，请用 gzip 重新保存",
                           "is compressed with a filter that is not installed here: save it with gzip"),
    "declares %s": ("声明的大小与内容不符，请重新提取特征", "declares more than it holds: extract its features again"),
    "NaN or infinity in %s of %s tiles":
        ("{1} 个图块中有 {0} 个含 NaN 或无穷大", "has NaN or infinity in {0} of {1} tiles"),
    "its tiles make the model overflow": ("图块的数值大到模型溢出，请检查特征怎么提取的",
                                          "has values that make the model overflow: check how they were extracted"),
    "its coordinates: %s": ("坐标不可用：{0}", "has unusable coordinates: {0}"),
    "locked: is another process still writing it?": ("文件被占用", "is locked"),
    "is larger than %s GB": ("超过 {0} GB，请改用命令行", "is larger than {0} GB: use the command line"),
    "unpacks to %s GB, up to %s GB are read": ("解压后有 {0} GB，网页至多读 {1} GB，请改用命令行",
                                               "unpacks to {0} GB, more than {1} GB: use the command line"),
    "sent nothing for %s seconds": ("上传中断了 {0} 秒，请重新上传", "sent nothing for {0} seconds: send it again"),
    "is slower than %s MB a second": ("上传太慢，请把文件复制到这台电脑上",
                                      "is too slow: copy the file to this machine"),
    "has no room beside the other uploads": ("别的上传占满了空间，请稍后再试",
                                             "finds no room now: send it again later"),
    "its %s tiles need %s GB of memory, %s GB are free":
        ("{0} 个图块需要 {1} GB 内存，只有 {2} GB 可用", "has {0} tiles that need {1} GB of memory, {2} GB are free"),
    "cannot be stored (%s)": ("存不下：磁盘空间不足", "cannot be stored: no space on this disk"),
    "its name ends in %s": ("文件名应以 .h5、.hdf5、.pt、.npy 或 .npz 结尾",
                            "must be a .h5, .hdf5, .pt, .npy or .npz file"),
    "does not come from this page": ("请求不是从这个网页发出的", "the request does not come from this page"),
    "are not a list of texts": ("文本的格式不对", "the texts are not a list"),
    "its caption is empty": ("描述是空的，没有可解释的内容", "has an empty caption: nothing to explain"),
    "%s texts, the longest of %s characters":
        ("文本太多或太长（{0} 条，最长 {1} 个字）：至多 40 条，每条至多 200 个字",
         "are too many or too long ({0}, the longest of {1} characters): up to 40 of up to 200 characters"),
}
REASONS = {  # why a slide is unusual (models.unusual) -> Chinese
    "all its tiles are zero": "所有图块都是 0",
    "all its tiles are equal": "所有图块都相同",
    "a single tile": "只有一个图块",
    "%s of its tiles are zero": "{0} 的图块是 0",
    "fewer tiles than any training slide (%s, the fewest were %s)":
        "图块比任何训练切片都少（{0} 个，训练切片至少 {1} 个）",
    "far from the training slides in Prism's space (%s, limit %s)": "在 Prism 的空间里离训练切片远（{0}，界限 {1}）",
    "far from the training slides in the contrastive space (%s, limit %s)":
        "在对比空间里离训练切片远（{0}，界限 {1}）",
}
ABOUT = {  # what a start says about a run
    "slides": "切片（训练、验证）",
    "validation texts that also stand in training": "训练集里也有的验证文本",
    "tiles per slide": "每张切片的图块",
    "vocabulary": "词表大小",
    "data fingerprint": "数据指纹",
    "Prism": "Prism 权重",
    "Prism revision": "Prism 版本",
    "Prism SHA-256": "Prism 的 SHA-256",
    "trained parameters": "训练的参数",
    "torch": "torch",
    "python": "Python",
    "threads": "线程",
    "precision": "精度",
    "device": "设备",
    "processes": "进程",
}
ABOUT_VALUES = {" training": " 训练", " validation": " 验证", " in all": " 合计", "None": "–"}  # words in its values
_SPLITS = {"training": "训练", "validation": "验证", "test": "测试"}
_SPECIFIER = re.compile(r"%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-z])")


def warning_in_chinese(text: str) -> str:
    """A warning of the log in Chinese, or as it is."""
    found = _match(text, WARNINGS)
    if found is None:
        return text
    form, values = found
    return WARNINGS[form].format(*(_SPLITS.get(value, value) for value in values))


def fault_in_words(what: str) -> tuple[str, str]:
    """(Chinese, English) of what is wrong with a slide's file; in English as it is where it is not known here."""
    found = _match(what, FAULTS)
    if found is None:
        return f"不能用：{what}", what
    form, values = found
    chinese, english = FAULTS[form]
    return chinese.format(*values), english.format(*values)


def reasons_in_words(reasons: str) -> tuple[str, str]:
    """(Chinese, English) of why a slide is unusual."""
    chinese = []
    for reason in reasons.split("; "):
        found = _match(reason, REASONS)
        chinese.append(REASONS[found[0]].format(*found[1]) if found else reason)
    return "；".join(chinese), reasons


def _match(text: str, forms: Mapping[str, object]) -> tuple[str, tuple[str, ...]] | None:
    """(the form that a text was made of, its values), None if there is none."""
    for form in forms:
        match = _pattern(form).fullmatch(text)
        if match:
            return form, match.groups()
    return None


@cache
def _pattern(form: str) -> re.Pattern[str]:
    """What the texts of a format look like, a group for each value."""
    pattern, end = "", 0
    for specifier in _SPECIFIER.finditer(form):
        pattern += re.escape(form[end:specifier.start()])
        pattern += "%" if specifier[0] == "%%" else "(.*?)"
        end = specifier.end()
    return re.compile(pattern + re.escape(form[end:]), re.DOTALL)
