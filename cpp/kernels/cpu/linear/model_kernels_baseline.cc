#include "kernels/cpu/linear/linear_tile.h"
#include "kernels/cpu/linear/model_kernels.h"
#include "kernels/cpu/linear/rms_norm_row.h"
#include "kernels/cpu/linear/silu_mul_row.h"

namespace kvctl {

const ModelKernels kModelKernelsBaseline = {kPanelWidth, LinearPanels<float>,
                                            LinearPanels<uint16_t>, RmsNormRow, SiluMulRow};

}  // namespace kvctl
