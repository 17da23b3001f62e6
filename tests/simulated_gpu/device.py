"""What the simulated GPU says of itself."""

from cuattn.arrays.device import TARGETS, Device

NUM_SMS = 132


def gpu_of(arch):
    facts = TARGETS[arch]
    smem = facts.max_smem_per_cta, facts.max_smem_per_sm
    return Device(0, "NVIDIA Simulated", arch.removesuffix("a"), arch, NUM_SMS, *smem)


GPU = gpu_of("90a")
