"""Chinese words of the generated blocks."""

from __future__ import annotations

_PHRASES = {
    "variable": ("variable", "变量"),
    "read at": ("read at", "读取时机"),
    "values": ("values", "取值"),
    "default": ("default", "默认值"),
    "meaning": ("meaning", "含义"),
    "op": ("op", "算子"),
    "dtypes": ("dtypes", "数据类型"),
    "head dim": ("head dim", "头维度"),
    "CPU forward": ("CPU forward", "CPU 前向"),
    "CPU backward": ("CPU backward", "CPU 反向"),
    "sm_80 forward": ("sm_80 forward", "sm_80 前向"),
    "sm_80 backward": ("sm_80 backward", "sm_80 反向"),
    "causal": ("causal", "因果"),
    "window": ("window", "窗口"),
    "softcap": ("softcap", "softcap"),
    "LSE": ("LSE", "LSE"),
    "mask or bias": ("mask or bias", "掩码或偏置"),
    "ALiBi": ("ALiBi", "ALiBi"),
    "sinks": ("sinks", "sinks"),
    "dropout": ("dropout", "dropout"),
    "pages": ("pages", "分页"),
    "yes": ("yes", "支持"),
    "no": ("no", "暂无"),
    "what": ("what", "项目"),
    "measured": ("measured", "实测"),
    "worst case": ("worst case", "最差情形"),
    "bar": ("bar", "目标"),
    "met": ("met", "达到"),
    "short": ("short", "未达到"),
    "busy": ("doubtful: a busy machine", "存疑：测量时机器繁忙"),
    "geometric mean": ("mean", "平均"),
    "bars elsewhere": (
        "On {machine} ({where}) {met} of {all} measured bars are met. {short}",
        "在 {machine}（{where}）上，测得的 {all} 个目标中有 {met} 个达到。{short}",
    ),
    "short elsewhere": ("Of those in the table these are not:", "表中所列目标里，在那里未达到的是："),
    "all met elsewhere": ("All of those in the table are among them.", "表中所列目标都在其中。"),
    "bars met": (
        "Of all {all} bars {met} are met on this machine. The table has those against other programs, of several the "
        "strongest, and those against rates of the machine; \"rows as queries\" is torch's SDPA given a group's heads "
        "as query rows. Of the {out} that it leaves out {missed} are missed: {page}.",
        "全部 {all} 个目标中，有 {met} 个在这台机器上达到。表中是与其他程序相比的目标（有几个程序时取最强的一个），"
        "以及与机器自身速率相比的目标。表中未列的 {out} 个目标里，{missed} 个未达到，见 {page}。",
    ),
    "mask legend": (
        "Rows are queries, columns are keys. 0: not seen; 1: seen. In piecewise attention 1 is scored by q1·k1 and "
        "2 by q2·k2. The last query is aligned with the last key: where queries outnumber keys, the first rows see "
        "nothing.",
        "行是查询，列是键。0 表示看不见，1 表示看得见；在分段注意力中，1 用 q1·k1 打分，2 用 q2·k2 打分。"
        "最后一个查询与最后一个键对齐，因此当查询多于键时，最前面的几行什么也看不见。",
    ),
    "chart title": ("Attention forward on CPU against torch", "CPU 上注意力前向与 torch 的比较"),
    "result": ("result", "结果"),
    "dtype": ("dtype", "类型"),
    "max": ("max", "最大"),
    "plain max": ("plain's max", "朴素写法最大"),
    "mean": ("mean", "平均"),
    "plain mean": ("plain's mean", "朴素写法平均"),
    "unmeasured": (
        "Judged by the rule in the tests like all others, but not in this table before the study's next run: {ops}.",
        "与其他算子一样由测试按上述规则检验，但要到下次测量时才会列入此表：{ops}。",
    ),
    "ours, ms": ("ours, ms", "本项目，ms"),
    "torch.compile, ms": ("torch.compile, ms", "torch.compile，ms"),
    "ours / copy of the same bytes": ("ours / copy of the same bytes", "本项目 / 复制同样字节"),
    "torch.compile / ours": ("torch.compile / ours", "torch.compile / 本项目"),
    "op, µs per call": ("op, µs per call", "算子，每次调用的 µs"),
    "without gradient": ("without gradient", "不求梯度"),
    "with gradient": ("with gradient", "求梯度"),
    "call limit": (
        "A call may cost at most {limit} µs {kind}; these cost more: {ops}.",
        "{kind}时一次调用至多应花 {limit} µs；超出的有：{ops}。",
    ),
    "none": ("none", "无"),
    "no results": ("No results are committed yet.", "仓库中暂无测量结果。"),
}


def phrase(key: str, language: str) -> str:
    english, chinese = _PHRASES[key]
    return chinese if language == "zh" else english


# In this order: longer phrases first.
BAR_WORDS = (
    ("integration training step", "接入后的训练步"),
    ("integration generation", "接入后的生成"),
    ("against HF Llama SDPA", "与 HF Llama（SDPA）之比"),
    ("attention forward", "注意力前向"),
    ("attention backward", "注意力反向"),
    ("torch's layout", "torch 的内存布局"),
    ("short sequences forward", "短序列前向"),
    ("short sequences backward", "短序列反向"),
    ("piecewise forward", "分段注意力前向"),
    ("piecewise backward", "分段注意力反向"),
    ("padding mask forward", "填充掩码前向"),
    ("one head forward", "单头前向"),
    ("one head backward", "单头反向"),
    ("forward+backward", "前向加反向"),
    ("rms_norm forward", "rms_norm 前向"),
    ("rms_norm 前向加反向", "rms_norm 前向加反向"),
    ("swiglu forward", "swiglu 前向"),
    ("swiglu backward", "swiglu 反向"),
    ("linear cross-entropy", "输出层加交叉熵"),
    ("cross-entropy", "交叉熵"),
    ("extra memory against torch eager", "与 torch eager 额外内存之比"),
    ("time against torch eager", "与 torch eager 时间之比"),
    ("time against torch's own", "与 torch 自带实现时间之比"),
    ("training step", "训练步"),
    ("decode, paged", "解码，分页"),
    ("decode", "解码"),
    ("context", "上下文"),
    ("share of the read bandwidth", "占读带宽的比例"),
    ("time of contiguous", "所用时间与连续缓存之比"),
    ("against rows as queries", "与把组内各头当作查询行的 torch 之比"),
    ("against onnxruntime", "与 onnxruntime 之比"),
    ("rate against sgemm", "与 sgemm 速率之比"),
    ("two threads against one", "两个线程与一个线程之比"),
    ("against two calls", "与两次调用再合并之比"),
    ("against our fp32", "与我们的 fp32 之比"),
    ("against torch.compile", "与 torch.compile 之比"),
    ("against torch SDPA", "与 torch SDPA 之比"),
    ("against torch", "与 torch 之比"),
    ("against HF Llama eager", "与 HF Llama（eager）之比"),
    ("against HF Llama compiled", "与 HF Llama（torch.compile）之比"),
    ("time of a copy into a kept buffer", "所用时间与拷贝到保留缓冲区之比"),
    ("time of plain", "所用时间与普通注意力之比"),
    ("every case", "所有情形"),
    (" full", " 无掩码"),
    (" causal", " 因果"),
    (", ", "，"),
)

ENVIRONMENT_ZH = {
    "first call": "首次调用算子时",
    "build": "构建时",
    "import": "导入时",
    "scalar, avx2, avx512, amx": "scalar、avx2、avx512、amx",
    "the best the host has": "本机支持的最高级别",
    "Instruction set of the CPU kernels. A level the host lacks is not used; `python -m flagattn` says so.": (
        "CPU 内核使用的指令集。本机不支持的级别不会被采用，`python -m flagattn` 会说明原因。"
    ),
    "AUTO, ON, OFF": "AUTO、ON、OFF",
    "AUTO": "AUTO",
    "Whether the CUDA library is built. AUTO builds it where nvcc is found; no GPU is needed.": (
        "是否构建 CUDA 库。AUTO 表示找到 nvcc 就构建，不需要 GPU。"
    ),
    "CMake's notation, such as 80-real": "CMake 的写法，例如 80-real",
    "every arch that has kernels": "所有已有内核的架构",
    "CUDA architectures to build for.": "要构建的 CUDA 架构。",
    "ON, OFF": "ON、OFF",
    "OFF; make sets ON": "OFF；make 设为 ON",
    "Whether a compiler's warning ends the build.": "编译器的警告是否使构建终止。",
    "a number": "整数",
    "the number of cores": "处理器核数",
    "Compile jobs at once.": "并行编译的任务数。",
    "CMake arguments": "CMake 参数",
    "none": "无",
    "Passed on to CMake.": "原样传给 CMake。",
    "a path": "路径",
    "the built `flagattn/_C.so`": "构建得到的 `flagattn/_C.so`",
    "Another build of the CPU library to load, such as one with sanitizers.": (
        "改为加载另一份 CPU 库，例如带检查工具的构建。"
    ),
    "1": "1",
    "off": "关闭",
    "Values that CUDA kernels only keep inside memory (offsets, lengths, pages, positions, targets) are looked at "
    "before every call and refused where they are wrong, as the CPU always does. Each call then waits for the GPU.": (
        "CUDA 内核对取值（偏移、长度、页号、位置、目标）只保证不越出内存；"
        "设为 1 后，每次调用前都像 CPU 那样检查这些取值，有错就报错。这样每次调用都要等待 GPU。"
    ),
    "a C++ compiler": "C++ 编译器",
    "c++": "c++",
    "The compiler.": "所用的编译器。",
}
