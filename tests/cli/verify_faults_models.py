"""Twelve tiny architectures, of square matrices among others."""

from __future__ import annotations

SIZES = "num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4&vocab_size=99"
GROUPED = f"{SIZES}&num_key_value_heads=2"
MODELS = {
    "bert": f"random:bert?{SIZES}",
    "llama": f"random:llama?{GROUPED}&architecture=LlamaForCausalLM",
    "mistral": f"random:mistral?{GROUPED}&architecture=MistralForCausalLM&sliding_window=5",
    "gemma2": f"random:gemma2?{GROUPED}&head_dim=8&architecture=Gemma2ForCausalLM&sliding_window=5",
    "phi3": f"random:phi3?{GROUPED}&architecture=Phi3ForCausalLM",
    "qwen2": f"random:qwen2?{GROUPED}&architecture=Qwen2ForCausalLM",
    "mixtral": f"random:mixtral?{GROUPED}&architecture=MixtralForCausalLM&num_local_experts=4",
    "falcon": "random:falcon?num_hidden_layers=2&hidden_size=32&num_attention_heads=4&vocab_size=99&alibi=true&architecture=FalconForCausalLM",
    "gpt_neox": f"random:gpt_neox?{SIZES}&architecture=GPTNeoXForCausalLM",
    "cohere": f"random:cohere?{GROUPED}&architecture=CohereForCausalLM",
    "gpt2": "random:gpt2?n_layer=2&n_embd=32&n_head=4&vocab_size=99&architecture=GPT2LMHeadModel",
    "vit": "random:vit?num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=2&image_size=16&patch_size=4",
}
