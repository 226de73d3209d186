/*!
 * \file kernels/isa.h
 * \brief The vector instructions of this machine: the widest set that the kernels may use.
 */
#ifndef KVCTL_KERNELS_ISA_H_
#define KVCTL_KERNELS_ISA_H_

namespace kvctl {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

/*!
 * \brief The widest instruction set of this machine, or a narrower one named by the environment
 * variable KVCTL_ISA ("baseline", "avx2", "avx2vnni", "avx512"). Read once.
 * \throws kValue if the variable has another value.
 */
Isa CpuIsa();

/*!
 * \brief Whether tiles of bfloat16 (AMX) may be used.
 *
 * That is so where the processor has them, KVCTL_ISA is not set, and the operating system gives
 * this process the room to save them. The system is asked once, by the first call.
 */
bool CpuHasTiles();

/*!
 * \brief Whether kernels for AVX2 may use its products of bytes (AVX-VNNI).
 *
 * That is so where the processor has them, unless KVCTL_ISA is "baseline" or "avx2"; "avx2vnni"
 * asks for them where the processor has AVX-512 too.
 */
bool CpuHasAvxVnni();

/*! \brief "baseline", "avx2" or "avx512". */
const char* IsaName(Isa isa);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_ISA_H_
