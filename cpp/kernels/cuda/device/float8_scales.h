/*!
 * \file kernels/cuda/device/float8_scales.h
 * \brief What pages of DType::kFloat8 have beside their bytes.
 */
#ifndef KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_SCALES_H_
#define KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_SCALES_H_

namespace kvctl::cuda {

/*! \brief Pointers to device memory, null for pages of other types. */
struct Float8Scales {
  const float* scales;                //!< [2, num_kv_heads] of the layer: K's, then V's
  unsigned long long* num_saturated;  //!< counts elements that are too large for their scale
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_DEVICE_FLOAT8_SCALES_H_
