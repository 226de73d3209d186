// The headers that a program without TVM includes compile without TVM's include path.
#include "check.h"
#include "kvctl/api.h"
#include "kvctl/checking.h"
#include "kvctl/drafter.h"
#include "kvctl/dtype.h"
#include "kvctl/error.h"
#include "kvctl/mask.h"
#include "kvctl/sampling.h"
#include "kvctl/step_request.h"
#include "kvctl/token_tree.h"
#include "kvctl/verify.h"

#if __has_include(<tvm/ffi/object.h>) || __has_include(<dlpack/dlpack.h>)
#error "this test must be compiled without the headers of TVM"
#endif

TEST(HeadersNeedNoTvm) {
  EXPECT_EQ(kvctl::TokenTree::Chain({1, 2}).num_rows(), 2);
  EXPECT_EQ(std::string(kvctl::RuleName(kvctl::Rule::kBestOfK)), "best_of_k");
  EXPECT_EQ(std::string(kvctl::DrawnName(kvctl::Drawn::kCoupled)), "coupled");
  EXPECT_EQ(kvctl::Draft::Nothing(7).tree.size(), 1);
  EXPECT(kvctl::Mask::Causal().tree_parents() == nullptr);
  EXPECT(!kvctl::SetChecking(true));
  EXPECT(kvctl::Checking() && kvctl::SetChecking(false));
}
