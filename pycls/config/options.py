"""The options that belong to no component: every one with its default, its meaning and what it may be.

The names are pycls's where pycls has the option. A component's own options are not here: they are read off its
constructor (``pycls/config/schema.py``). The default's type is the option's type; a float option takes an int as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pycls.ranges import COUNT, NONZERO_SHARE, NOT_NEGATIVE, PART, POSITIVE, SHARE, Range


@dataclass(frozen=True)
class Option:
    """One leaf of the tree of options.

    Attributes:
        default: the value when none is given; its type is the option's type.
        help: what it means, with units and ranges.
        choices: the values it may take; empty for any.
        range: what a number, or each number of a list, may be; None for any finite one.
        types: the types it may have, where it is not just the default's type.
        aliases: other names of choices -> the choice; the tree, and what is written of it, has the choice.
    """

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    types: tuple[Any, ...] = ()
    aliases: Mapping[str, Any] = field(default_factory=dict)


SEED = Range(0, 2**63 - 1)

CORE: dict[str, Option] = {
    "IMPORTS": Option([], "Python modules to import first, which register components of your own",
                      types=(list[str],)),
    # --- the model
    "MODEL.TYPE": Option("", "the backbone (--help-options MODEL lists them)"),
    "MODEL.DEPTH": Option(0, "its depth, for a family that comes in depths; 0 for the family's default", range=NOT_NEGATIVE),
    "MODEL.NUM_CLASSES": Option(0, "number of classes; 0 for as many as the training set has", range=NOT_NEGATIVE),
    "MODEL.ACTIVATION_FUN": Option("", "activation function of resnet, anynet, regnet and effnet; empty for the net's own",
                                   choices=("", "relu", "silu", "swish", "gelu")),
    "MODEL.SCALING_TYPE": Option("", "--mode scale: the axes to scale, of depth, width, group width and resolution, such as "
                                 "dw or d1_w8_g8_r1"),
    "MODEL.SCALING_FACTOR": Option(1.0, "--mode scale: how many times the multiply-adds", range=POSITIVE),
    "MODEL.COMPILE": Option(False, "compile the backbone's forward and backward with torch.compile; reduce-overhead replays "
                            "CUDA graphs, which small nets gain by, max-autotune also tries out kernels",
                            types=(bool, str), choices=(False, True, "reduce-overhead", "max-autotune")),
    "MODEL.ACTIVATION_CHECKPOINTING": Option(False, "keep only the inputs of the backbone's blocks for the backward pass, "
                                             "which computes the rest again: less memory, a third more work"),
    "MODEL.CHANNELS_LAST": Option(True, "keep images and convolution weights in channels-last memory order"),
    "HEAD.NAME": Option("softmax", "the head, by name; empty when it is spelled out by its parts"),
    "HEAD.LR_MULT": Option(1.0, "learning rate of the head's parameters, as a multiple of the backbone's", range=NOT_NEGATIVE),
    "HEAD.WEIGHT_DECAY": Option(-1.0, "weight decay of the head's parameters; -1 for OPTIM.WEIGHT_DECAY",
                                range=Range(0, also=(-1,))),
    "HEAD.MARGIN_WARMUP": Option(0, "training steps over which the margin grows from 0 to its full size", range=NOT_NEGATIVE),
    "HEAD.CHUNK": Option(0, "classes worked on at a time, to save memory; 0 chooses by their number", range=NOT_NEGATIVE),
    "HEAD.PARALLEL": Option("none", "class shards the classes, their prototypes and logits, among the processes",
                            choices=("none", "class")),
    "HEAD.SAMPLE_RATE": Option(1.0, "share of the classes that a training step looks at, beside those of the batch (Partial "
                               "FC); needs HEAD.PARALLEL class", range=NONZERO_SHARE),
    "HEAD.SIMILARITY.NAME": Option("", "how features and prototypes are compared, when spelling a head out"),
    "HEAD.MARGIN.NAME": Option("", "what is asked of the target class in training; empty for no margin"),
    "HEAD.CRITERION.NAME": Option("", "logits and labels -> loss; empty for the head's own (cross_entropy)"),
    "HEAD.AUXILIARIES": Option([], "further losses, each a mapping with its NAME and options, e.g. [{NAME: center}]"),
    "BN.EPS": Option(1e-5, "batch norm: added to the variance", range=POSITIVE),
    "BN.MOM": Option(0.1, "batch norm: share of the newest batch in the running statistics (PyTorch's)", range=SHARE),
    "BN.USE_PRECISE_STATS": Option(False, "recompute the running statistics over training images before evaluating"),
    "BN.NUM_SAMPLES_PRECISE": Option(8192, "training images to do so with", range=COUNT),
    "BN.SYNC": Option(False, "batch statistics over all processes (on GPUs)"),
    "BN.ZERO_INIT_FINAL_GAMMA": Option(False, "start the last batch norm of each residual block at 0"),
    "BN.USE_CUSTOM_WEIGHT_DECAY": Option(False, "give batch norm's parameters BN.CUSTOM_WEIGHT_DECAY"),
    "BN.CUSTOM_WEIGHT_DECAY": Option(0.0, "weight decay of batch norm's parameters", range=NOT_NEGATIVE),
    "LN.EPS": Option(1e-5, "layer norm: added to the variance", range=POSITIVE),
    "LN.USE_CUSTOM_WEIGHT_DECAY": Option(False, "give layer norm's parameters LN.CUSTOM_WEIGHT_DECAY"),
    "LN.CUSTOM_WEIGHT_DECAY": Option(0.0, "weight decay of layer norm's parameters", range=NOT_NEGATIVE),
    # --- the data
    "DATA.ROOT": Option("", "folder of the data sets; empty for $PYCLS_DATA, else ./data"),
    "DATA.DOWNLOAD": Option(True, "fetch a missing data set that may be fetched (checksums verified)"),
    "DATA.SYNTHETIC": Option(False, "random images of the data set's shape and number of classes; nothing is read from disk"),
    "DATA.MAX_UNREADABLE": Option(100, "images of a split that may be unreadable: each is named in the log and replaced (in "
                                  "training) or left out (in evaluation); one more ends the run", range=NOT_NEGATIVE),
    "DATA.LONG_TAIL.PROFILE": Option("none", "train on a long tail of the set: exponential (CIFAR-LT), pareto (ImageNet-LT)",
                                     choices=("none", "exponential", "pareto")),
    "DATA.LONG_TAIL.IMBALANCE": Option(100.0, "exponential: size of the largest class over that of the smallest", range=COUNT),
    "DATA.LONG_TAIL.LARGEST": Option(0, "pareto: images of the first class; 0 for as many as the largest class has",
                                     range=NOT_NEGATIVE),
    "DATA.LONG_TAIL.SMALLEST": Option(5, "pareto: images of the last class", range=COUNT),
    "DATA.NOISE.KIND": Option("none", "train on wrong labels: symmetric (any other class), pairs (DATA.NOISE.PAIRS), "
                              "superclass (another class of the same), blocks (any of five consecutive classes)",
                              choices=("none", "symmetric", "pairs", "superclass", "blocks"),
                              aliases={"adjacent_classes": "blocks"}),
    "DATA.NOISE.RATE": Option(0.0, "probability that a training label is drawn again at random", range=SHARE),
    "DATA.NOISE.PAIRS": Option([], "pairs: [from, to] classes; empty for each class to the next",
                               range=NOT_NEGATIVE, types=(list[list[int]],)),
    "DATA.SEED": Option(0, "seed of the long tail and of the noise, apart from RNG_SEED: runs of other seeds share their data",
                        range=SEED),
    "DATA.HASH": Option("", "SHA-256 of the training set that long tail, noise and subset made: written to the run's "
                        "config.yaml, compared where it is given"),
    "TRAIN.IMAGES_PER_CLASS": Option(0, "train on so many images of each class, always the same ones; 0 for all",
                                     range=NOT_NEGATIVE),
    "TRAIN.DATASET": Option("digits", "the data set (--help-options DATA lists them)"),
    "TRAIN.SPLIT": Option("train", "its part to train on; trainval for train and val together"),
    "TRAIN.EVAL_SPLIT": Option("val", "its part evaluated during training; the best epoch is chosen on val only",
                               choices=("val", "test", "none")),
    "TRAIN.BATCH_SIZE": Option(128, "images in an optimiser step, over all processes", range=COUNT),
    "TRAIN.ACCUM_STEPS": Option(1, "parts the batch is cut into, to save memory (gradient accumulation)", range=COUNT),
    "TRAIN.SAMPLER": Option("instance", "which samples an epoch shows: each once (instance), classes in turn (class_aware), "
                            "classes alike, by the square root of their sizes, or rare classes repeated",
                            choices=("instance", "class_aware", "class_balanced", "square_root", "repeat_factor"),
                            aliases={"uniform": "instance"}),
    "TRAIN.SAMPLES_PER_CLASS": Option(4, "class_aware: images of a class in a row", range=COUNT),
    "TRAIN.REPEAT_THRESHOLD": Option(1e-3, "repeat_factor: share of the set from which on a class is not repeated",
                                     range=NONZERO_SHARE),
    "TRAIN.IM_SIZE": Option(0, "side of a training image in pixels; 0 for the data set's own", range=NOT_NEGATIVE),
    "TRAIN.IM_SIZES": Option([], "progressive image size: [[epoch, side], ...], from that epoch on another side; evaluation "
                             "keeps TRAIN.IM_SIZE", range=NOT_NEGATIVE, types=(list[list[int]],)),
    "TRAIN.EVAL_PERIOD": Option(1, "epochs between evaluations; the last epoch is always evaluated", range=COUNT),
    "TRAIN.CHECKPOINT_PERIOD": Option(1, "epochs between checkpoints", range=COUNT),
    "TRAIN.CHECKPOINT_STEPS": Option(0, "also a checkpoint every so many steps within an epoch; 0 for none",
                                     range=NOT_NEGATIVE),
    "TRAIN.CHECKPOINT_KEEP": Option(2, "newest checkpoints to keep, besides the best", range=COUNT),
    "TRAIN.AUTO_RESUME": Option(True, "continue from the newest checkpoint in OUT_DIR"),
    "TRAIN.WEIGHTS": Option("", "weights to start from: a file, a URL, or a name of the Model Zoo"),
    "TRAIN.LABEL_SMOOTHING": Option(0.0, "share of the target spread over all classes", range=PART),
    "TRAIN.MIXED_PRECISION": Option(False, "False, bf16 or fp16; True means fp16", types=(bool, str),
                                    choices=(False, True, "bf16", "fp16")),
    "TRAIN.MIXUP_ALPHA": Option(0.0, "mixup: Beta(a, a) of the mixing ratio; 0 for none", range=NOT_NEGATIVE),
    "TRAIN.CUTMIX_ALPHA": Option(0.0, "cutmix: Beta(a, a) of the area kept; 0 for none", range=NOT_NEGATIVE),
    "TRAIN.CROP_PADDING": Option(-1, "random crop after padding by so many pixels; -1 for the data set's own",
                                 range=Range(0, also=(-1,))),
    "TRAIN.HFLIP": Option("auto", "random left-right flip; auto for the data set's own", choices=("auto", "on", "off")),
    "TRAIN.AUGMENT": Option("", "AutoAugment, RandAugment_N2_M0.5, TrivialAugmentWide, AugMix, or timm's rand-m9-mstd0.5-inc1, "
                            "v0, augmix-m3; empty for none"),
    "TRAIN.COLOR_JITTER": Option(0.0, "brightness, contrast and saturation times factors in 1 - it .. 1 + it; 0 for none",
                                 range=NOT_NEGATIVE),
    "TRAIN.PCA_STD": Option(0.1, "photographs: lighting along the principal components of colour; 0 for none",
                            range=NOT_NEGATIVE),
    "TRAIN.ERASE_PROB": Option(0.0, "random erasing: the probability that a box of an image becomes the mean colour",
                               range=SHARE),
    "TRAIN.REPEATS": Option(1, "repeated augmentation: showings of an image in a row, of as many fewer images", range=COUNT),
    "TEST.DATASET": Option("", "the data set to test on; empty for TRAIN.DATASET"),
    "TEST.SPLIT": Option("auto", "its part to test on; auto for test where there is one, else val; never images that are "
                         "trained on, except in --mode test where it names them (train, trainval)",
                         choices=("auto", "train", "val", "trainval", "test")),
    "TEST.MATCH_CLASSES": Option("name", "its classes are the model's of the same name, or by position: class k is output k",
                                 choices=("name", "position")),
    "TEST.BATCH_SIZE": Option(1000, "images in an evaluation batch, over all processes", range=COUNT),
    "TEST.IM_SIZE": Option(0, "side an image is resized to before its centre is cut out; 0 for the data set's own",
                           range=NOT_NEGATIVE),
    "TEST.CROP_SIZE": Option(0, "side of the centre (FixRes: larger than in training); 0 for TRAIN.IM_SIZE",
                             range=NOT_NEGATIVE),
    "TEST.CROPS": Option(1, "views of each test image: 1, 2 with its mirror image, 10 crops of TEST.IM_SIZE, the corners, the "
                         "centre and their mirror images", choices=(1, 2, 10)),
    "TEST.TABLES": Option(False, "also write classes, confusion and predictions as CSV files; TEST.SAVE_CSV is another name"),
    "TEST.OPEN_SET": Option("", "a data set of other classes: how well its test part is told from the known classes"),
    "TEST.WEIGHTS": Option("", "weights to test: a file, a URL, or a name of the Model Zoo; empty for OUT_DIR's best"),
    "TEST.TOP_K": Option(5, "k of the top-k error; at most the number of classes, but for the default", range=COUNT),
    "DATA_LOADER.NUM_WORKERS": Option(2, "worker processes beside each training process, for images in files",
                                      range=Range(0, 1024)),
    "DATA_LOADER.DECODER": Option("auto", "of JPEGs: auto compiles a fast one where it can; pillow; gpu decodes on the CUDA "
                                  "GPU that trains (nvJPEG): not measured yet",
                                  choices=("auto", "pillow", "gpu")),
    "DATA_LOADER.PIN_MEMORY": Option(True, "page-locked memory for faster copies to a GPU"),
    # --- the optimisation
    "OPTIM.OPTIMIZER": Option("sgd", "the optimiser", choices=("sgd", "adam", "adamw")),
    "OPTIM.BASE_LR": Option(0.1, "learning rate at the top of the schedule", range=POSITIVE),
    "OPTIM.LR_POLICY": Option("cos", "the schedule", choices=("cos", "exp", "lin", "steps")),
    "OPTIM.EXP_RATE": Option(0.1, "exp: the end, as a multiple of BASE_LR, if MIN_LR is 0", range=NONZERO_SHARE),
    "OPTIM.STEPS": Option([], "steps: epochs at which the learning rate is multiplied by LR_MULT",
                          range=NOT_NEGATIVE, types=(list[int],)),
    "OPTIM.LR_MULT": Option(0.1, "steps: the factor", range=POSITIVE),
    "OPTIM.MIN_LR": Option(0.0, "cos, lin, exp: the end, as a multiple of BASE_LR", range=SHARE),
    "OPTIM.MAX_EPOCH": Option(200, "epochs", range=NOT_NEGATIVE),
    "OPTIM.WARMUP_EPOCHS": Option(0.0, "epochs of linear warm-up", range=NOT_NEGATIVE),
    "OPTIM.WARMUP_FACTOR": Option(0.1, "share of the learning rate that the warm-up starts at", range=SHARE),
    "OPTIM.MOMENTUM": Option(0.9, "sgd: momentum", range=PART),
    "OPTIM.DAMPENING": Option(0.0, "sgd: dampening", range=PART),
    "OPTIM.NESTEROV": Option(True, "sgd: Nesterov's form"),
    "OPTIM.BETA1": Option(0.9, "adam, adamw: decay of the mean of gradients", range=PART),
    "OPTIM.BETA2": Option(0.999, "adam, adamw: decay of the mean of their squares",
                          range=Range(0, 1, open_left=True, open_right=True)),
    "OPTIM.WEIGHT_DECAY": Option(5e-4, "weight decay (L2; decoupled in adamw)", range=NOT_NEGATIVE),
    "OPTIM.BIAS_USE_CUSTOM_WEIGHT_DECAY": Option(False, "give biases, but the norms', OPTIM.BIAS_CUSTOM_WEIGHT_DECAY"),
    "OPTIM.BIAS_CUSTOM_WEIGHT_DECAY": Option(0.0, "weight decay of those biases", range=NOT_NEGATIVE),
    "OPTIM.CLIP_NORM": Option(0.0, "largest norm of the gradient; 0 for no clipping", range=NOT_NEGATIVE),
    "OPTIM.EMA_ALPHA": Option(1e-5, "moving average of the weights: share of the newest, scaled as in pycls by "
                              "BATCH_SIZE / MAX_EPOCH * EMA_UPDATE_PERIOD", range=NONZERO_SHARE),
    "OPTIM.EMA_UPDATE_PERIOD": Option(0, "steps between its updates; 0 for no moving average", range=NOT_NEGATIVE),
    # --- the second stage; it may also have HEAD.*, OPTIM.* and some of TRAIN.* otherwise (pycls/config/stage2.py)
    "STAGE2.METHOD": Option("none", "after the training a second stage on the frozen backbone: retrain (a new head: "
                            "STAGE2.HEAD), lws (a scale a class), tau_norm (weights / |w|^tau), ncm (nearest class mean)",
                            choices=("none", "retrain", "lws", "tau_norm", "ncm")),
    "STAGE2.FREEZE_BN": Option(True, "freeze batch norm's statistics, too; False lets them move as the public code does"),
    "STAGE2.TAU": Option(-1.0, "tau_norm: tau; -1 chooses it on the val part, in steps of 0.1 from 0 to 2",
                         range=Range(0, also=(-1,))),
    # --- the machine
    "DEVICE": Option("auto", "auto takes cuda, mps or cpu, the first there is", choices=("auto", "cpu", "cuda", "mps")),
    "NUM_GPUS": Option(1, "processes, one a GPU, when training on GPUs", range=COUNT),
    "NUM_PROCS": Option(1, "processes when training on the CPU", range=COUNT),
    "MAX_GPUS_PER_NODE": Option(8, "processes on one machine at most, when a job is submitted to several", range=COUNT),
    "NUM_THREADS": Option(0, "CPU threads of each process; 0 for the cores shared evenly", range=Range(0, 1024)),
    "RUNTIME.TIMEOUT": Option(600.0, "seconds that processes wait for one that hangs before the run ends",
                              range=Range(1, 10**8)),
    "DETERMINISTIC": Option(False, "on a GPU, only deterministic algorithms (slower); a CPU run always is"),
    "CUDNN.BENCHMARK": Option(True, "let cuDNN try its algorithms and take the fastest"),
    "PARALLEL.MODE": Option("ddp", "several processes: ddp, each with the whole model, or fsdp, which shards parameters, "
                            "gradients and the optimiser's state among them (FSDP2)", choices=("ddp", "fsdp")),
    "PARALLEL.STATIC_GRAPH": Option(False, "ddp: every step uses the same parameters in the same order"),
    "RNG_SEED": Option(1, "the seed that order, augmentation, initial weights and dropout are functions of", range=SEED),
    # --- where it runs
    "LAUNCH.MODE": Option("local", "local: processes of this machine; torchrun: the same, restarted when one dies; slurm: "
                          "a job; submitit_local: a job on this machine, to try it",
                          choices=("local", "torchrun", "slurm", "submitit_local")),
    "LAUNCH.MAX_RETRY": Option(3, "torchrun: restarts after a process died; slurm: requeues after a time-out",
                               range=NOT_NEGATIVE),
    "LAUNCH.NAME": Option("pycls_job", "slurm: the job's name"),
    "LAUNCH.COMMENT": Option("", "slurm: its comment"),
    "LAUNCH.TIME_LIMIT": Option(4200, "slurm: minutes an attempt may take", range=COUNT),
    "LAUNCH.SIGNAL_DELAY": Option(120, "slurm: seconds before its end at which it saves and queues again", range=COUNT),
    "LAUNCH.CPUS_PER_GPU": Option(0, "slurm: cores of each process; 0 for NUM_THREADS (at least 1), on GPUs for 1 and "
                                  "DATA_LOADER.NUM_WORKERS", range=NOT_NEGATIVE),
    "LAUNCH.MEM_PER_GPU": Option(0.0, "slurm: GB of memory for each process; 0 for the cluster's default", range=NOT_NEGATIVE),
    "LAUNCH.PARTITION": Option("", "slurm: the partition; empty for the cluster's default"),
    "LAUNCH.ACCOUNT": Option("", "slurm: the account it is charged to"),
    "LAUNCH.QOS": Option("", "slurm: the quality of service"),
    "LAUNCH.GRES": Option("gpu", "slurm: the GPUs as the cluster's gres calls them, such as gpu:a100; their number is added"),
    "LAUNCH.GPU_TYPE": Option("", "slurm: a feature that the nodes must have, as in pycls; see LAUNCH.GRES"),
    "LAUNCH.CONSTRAINT": Option("", "slurm: further features that the nodes must have"),
    "LAUNCH.EXCLUDE": Option("", "slurm: nodes not to use"),
    "LAUNCH.EMAIL": Option("", "slurm: who is told when the job ends"),
    "LAUNCH.SBATCH": Option([], "slurm: further options of sbatch, such as [--reservation=night, --exclusive]",
                            types=(list[str],)),
    "LAUNCH.SETUP": Option([], "slurm: lines of shell before the processes start, such as [module load cuda]",
                           types=(list[str],)),
    # --- what is written
    "DESC": Option("", "what the run is, for people"),
    "OUT_DIR": Option("", "folder of the run; empty for runs/<name of the YAML>"),
    "LOG_PERIOD": Option(10, "steps between two log lines; the host waits for the device only then", range=COUNT),
    "LOG_SAMPLES": Option(False, "write the ids of every global batch to samples_rank<r>.txt (for debugging)"),
    "TENSORBOARD": Option(True, "write TensorBoard event files"),
    "PREC_TIME.WARMUP_ITER": Option(3, "--mode time: steps before the clock starts", range=NOT_NEGATIVE),
    "PREC_TIME.NUM_ITER": Option(30, "--mode time: steps timed", range=COUNT),
}

IRRELEVANT_TO_RESULT = frozenset({
    "DATA.DOWNLOAD", "DATA.HASH", "DATA.MAX_UNREADABLE", "DATA.ROOT", "DATA_LOADER.*", "DESC", "HEAD.PARALLEL", "IMPORTS",
    "LAUNCH.*", "LOG_PERIOD", "LOG_SAMPLES", "MAX_GPUS_PER_NODE", "MODEL.ACTIVATION_CHECKPOINTING", "MODEL.SCALING_*",
    "NUM_GPUS", "NUM_PROCS", "NUM_THREADS", "OUT_DIR", "PARALLEL.*", "PREC_TIME.*", "RUNTIME.*", "TENSORBOARD", "TEST.*",
    "TRAIN.AUTO_RESUME", "TRAIN.CHECKPOINT_*",
})
"""Patterns of options that may differ between two runs of the same training: where, how fast and what is written."""
