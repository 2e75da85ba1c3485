"""A server that mixes people's rows is used only while it works for nobody else."""

import numpy as np
import pytest
import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.errors import UnsafeServerError


def load(folder, url):
    return Encoder.load(
        folder, backend="sglang", server=url, server_exclusive=True, dtype="float32"
    )


def test_a_request_that_is_still_counted_after_its_reply_is_our_own(stand_in, llama, states):
    encoder = load(llama, stand_in.play("sglang-old", llama, settling=2))
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    for text, got in zip(states[:3], encoder.encode(states[:3]), strict=True):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            wanted = model.base_model(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_one_that_stays_at_work_is_refused(stand_in, llama):
    url = stand_in.play("sglang-old", llama, running=3)
    with pytest.raises(UnsafeServerError, match="somebody else uses this server"):
        load(llama, url)
