"""What the paper printed: its worked example, Table 1 and the averages of Table 2. Nothing here is computed by us.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

# Figure 1: six completions of one prompt, a letter a token, and their outcome rewards.
WORKED_EXAMPLE = ("A B C D", "A B E F H I", "J K L M", "J K L N Q S T", "J K L N Q U", "V W Y Z")
WORKED_REWARDS = (0.5, 0.5, 1.0, 0.0, 0.0, 0.5)

# Table 1, the trap: (n, r_neg) → target frequency of GRPO, of λ-GRPO; five seeds, GPT-2 small.
TABLE1 = {
    (1, -0.5): (0.3995, 0.5663),
    (1, -1.0): (0.0000, 0.7535),
    (1, -1.5): (0.2000, 0.4463),
    (2, -0.5): (0.1980, 0.4292),
    (2, -1.0): (0.0488, 0.3612),
    (2, -1.5): (0.0000, 0.3820),
}

# Table 2: model, objective and β → average accuracy over the five benchmarks.
TABLE2_AVERAGES = {
    "qwen-base": 0.5175,
    "qwen-grpo-0": 0.4837,
    "qwen-lambda_grpo-0": 0.5576,
    "qwen-grpo-0.04": 0.5394,
    "qwen-lambda_grpo-0.04": 0.5739,
    "llama-base": 0.0814,
    "llama-grpo-0": 0.0842,
    "llama-lambda_grpo-0": 0.1001,
    "llama-grpo-0.04": 0.0996,
    "llama-lambda_grpo-0.04": 0.0973,
}
