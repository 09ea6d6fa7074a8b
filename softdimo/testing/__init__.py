"""Contract checks for components of your own, one for each kind, and a tiny teacher and tokenizer to try them on.

    from softdimo.testing import check_reward, context

    def test_contract():
        check_reward(MyReward().build(context()))

A check takes what `build` gives; those of a metric and of a data set take `build` itself, because they need it several
times: `check_metric(MyMetric().build)`. Each raises AssertionError, saying what the contract asks. They run in seconds
on a CPU.
"""

from softdimo.testing.claims import encoded as encoded
from softdimo.testing.measuring import check_data as check_data
from softdimo.testing.measuring import check_metric as check_metric
from softdimo.testing.networks import check_discriminator as check_discriminator
from softdimo.testing.networks import check_features as check_features
from softdimo.testing.networks import check_teacher as check_teacher
from softdimo.testing.networks import check_tokenizer as check_tokenizer
from softdimo.testing.sampling import check_sampler as check_sampler
from softdimo.testing.sampling import check_search as check_search
from softdimo.testing.terms import check_loss as check_loss
from softdimo.testing.terms import check_reward as check_reward
from softdimo.testing.texts import check_text_encoder as check_text_encoder
from softdimo.testing.tiny import IMAGE as IMAGE
from softdimo.testing.tiny import TOKENS as TOKENS
from softdimo.testing.tiny import TinyTeacher as TinyTeacher
from softdimo.testing.tiny import TinyTokenizer as TinyTokenizer
from softdimo.testing.tiny import context as context
