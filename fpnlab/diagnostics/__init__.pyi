from .activations import Signal as Signal
from .activations import block_signals as block_signals
from .drift import Drift as Drift
from .drift import statistics_drift as statistics_drift
from .gradients import effective_rates as effective_rates
from .gradients import gradient_noise as gradient_noise
from .nonfinite import first_not_finite as first_not_finite
