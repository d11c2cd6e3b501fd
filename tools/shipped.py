"""Where the models that ship are, for the tools, the benchmarks and the tests."""

import os

CHECKPOINTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "checkpoints")
# The paper's model, with a standard normal prior.
PAPER_RUN = (
    "bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=False"
    "-likelihood_variance=0.001-last_step=336000"
)
# The better one: training went on from the paper's model, with a learned prior.
RUN = (
    "bls2017_vae-num_filters=256_256_256-filter_dims=9_5_5-sampling_rates=4_2_2-learned_prior=True"
    "-prior_init_scale=1.0-prior_lr=0.003-likelihood_variance=0.001-last_step=14000"
)
