#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/model_kernels.h"
#include "kernels/cpu/rms_norm_row.h"
#include "kernels/cpu/silu_mul_row.h"

namespace kvctl {

const ModelKernels kModelKernelsAvx512 = {kPanelWidth, LinearPanels<float>, LinearPanels<uint16_t>,
                                          RmsNormRow, SiluMulRow};

}  // namespace kvctl
