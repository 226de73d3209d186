#include <string>
#include <vector>

#include "check.h"
#include "kvctl/registry_compat.h"

namespace {

namespace ffi = tvm::ffi;

ffi::Function Global(const std::string& name) { return ffi::Function::GetGlobalRequired(name); }

template <typename F>
void ExpectFFIError(F&& f, const std::string& kind, const std::string& part) {
  try {
    f();
  } catch (const ffi::Error& error) {
    EXPECT_EQ(std::string(error.kind()), kind);
    EXPECT(std::string(error.message()).find(part) != std::string::npos);
    return;
  }
  EXPECT(false && "nothing was thrown");
}

struct Allocator {
  void AllocData(DLTensor* tensor) { tensor->data = new float[6]; }
  void FreeData(DLTensor* tensor) { delete[] static_cast<float*>(tensor->data); }
};

}  // namespace

TEST(CompatPackedBodyReadsArgumentsAndWritesResult) {
  EXPECT_EQ(Global("old_extension.describe")("a", 3, 0.5, true).cast<std::string>(),
            "a:3:greedy:5");
}

TEST(CompatTypedBodies) {
  EXPECT_EQ(Global("old_extension.greet")("you").cast<std::string>(), "hello you");
  ffi::Tensor tensor =
      ffi::Tensor::FromNDAlloc(Allocator(), {2, 3}, DLDataType{kDLFloat, 32, 1}, {kDLCPU, 0});
  EXPECT_EQ(Global("old_extension.element_count")(tensor).cast<int64_t>(), 6);
}

TEST(CompatModuleMakesItsFunctions) {
  auto module = Global("old_extension.create")(4).cast<ffi::Module>();
  EXPECT_EQ(std::string(module->kind()), "old_extension.chat_log");
  EXPECT_EQ((*module->GetFunction("append"))(5, 6, 7).cast<int>(), 3);
  EXPECT_EQ((*module->GetFunction("popn"))(1).cast<int>(), 2);
  Global("old_extension.forget")(module);
  auto tokens = (*module->GetFunction("tokens"))().cast<ffi::Shape>();
  EXPECT_EQ(tokens.size(), 1u);
  EXPECT_EQ(tokens[0], 5);
  EXPECT(!module->GetFunction("absent").has_value());
}

TEST(CompatFunctionsOfAModuleKeepIt) {
  ffi::Function append =
      *Global("old_extension.create")(4).cast<ffi::Module>()->GetFunction("append");
  EXPECT_EQ(append(1).cast<int>(), 1);
}

TEST(CompatFunctionsCallFunctions) {
  ffi::Function square = ffi::Function::FromTyped([](int64_t x) { return x * x; });
  EXPECT_EQ(Global("old_extension.call_twice")(square, 3).cast<int>(), 81);
  EXPECT_EQ(Global("old_extension.echo")("same").cast<std::string>(), "same");
  EXPECT(Global("old_extension.echo")(nullptr) == nullptr);
}

TEST(CompatErrorsKeepTheirKind) {
  const int64_t large = (int64_t{1} << 32) + 7;
  ExpectFFIError([&] { Global("old_extension.create")(large); }, "ValueError", "does not fit");
  ExpectFFIError([&] { Global("old_extension.describe")("a", large, 0.5, true); }, "ValueError",
                 "4294967303");
  ExpectFFIError([] { Global("old_extension.describe")("a", "b", 0.5, true); }, "TypeError", "int");
  ExpectFFIError([] { Global("old_extension.describe")("a"); }, "IndexError",
                 "argument 1 of a call with 1");
  ExpectFFIError([] { Global("old_extension.greet")(); }, "TypeError", "expected 1 arguments");
  auto module = Global("old_extension.create")(4).cast<ffi::Module>();
  ExpectFFIError([&] { (*module->GetFunction("popn"))(-1); }, "InternalError", "cannot pop -1");
}

TEST(CompatRegistryGet) {
  using tvm::runtime::PackedFunc;
  using tvm::runtime::Registry;
  EXPECT(Registry::Get("old_extension.absent") == nullptr);
  const PackedFunc* greet = Registry::Get("old_extension.greet");
  EXPECT(greet != nullptr);
  EXPECT_EQ(Registry::Get("old_extension.greet"), greet);
  std::string greeting = (*greet)("you");
  EXPECT_EQ(greeting, "hello you");
}

TEST(CompatSecondRegistrationIsIgnored) {
  using tvm::runtime::Registry;
  std::ostringstream captured;
  std::streambuf* before = std::cerr.rdbuf(captured.rdbuf());
  Registry::Register("old_extension.greet").set_body_typed([](int x) { return x; });
  std::cerr.rdbuf(before);
  EXPECT(captured.str().find("old_extension.greet") != std::string::npos);
  EXPECT_EQ(Global("old_extension.greet")("you").cast<std::string>(), "hello you");
}
