// One test for each idiom of 2024 that chat_of_2024.cc does not use.
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "kvctl/registry_compat.h"

extern "C" {
int __tvm_ffi_old_model_vocab_size(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
int __tvm_ffi_old_model_count(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
}

namespace {

using namespace tvm::runtime;  // NOLINT
using tvm::ffi::Error;

template <typename F>
void ExpectFFIError(F&& f, const std::string& kind, const std::string& part) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.kind()), kind);
    EXPECT(std::string(error.message()).find(part) != std::string::npos);
    return;
  }
  EXPECT(false && "nothing was thrown");
}

class CounterObj : public Object {
 public:
  int64_t count = 0;
  void Add(int n) { count += n; }
  int64_t Count() const noexcept { return count; }

  static constexpr const char* _type_key = "old_idioms.Counter";
  TVM_DECLARE_FINAL_OBJECT_INFO(CounterObj, Object);
};

class Counter : public ObjectRef {
 public:
  explicit Counter(int64_t start) {
    ObjectPtr<CounterObj> n = make_object<CounterObj>();
    n->count = start;
    data_ = std::move(n);
  }
  int64_t Twice() const { return 2 * get()->count; }
  TVM_DEFINE_MUTABLE_OBJECT_REF_METHODS(Counter, ObjectRef, CounterObj);
};

TVM_REGISTER_OBJECT_TYPE(CounterObj);
TVM_REGISTER_GLOBAL("old_idioms.counter").set_body_typed([](int64_t start) {
  return Counter(start);
});
TVM_REGISTER_GLOBAL("old_idioms.twice").set_body_method(&Counter::Twice);
TVM_REGISTER_GLOBAL("old_idioms.add").set_body_method<Counter>(&CounterObj::Add);
TVM_REGISTER_GLOBAL("old_idioms.count").set_body_method<Counter>(&CounterObj::Count);
TVM_REGISTER_GLOBAL("old_idioms.type_code").set_body([](TVMArgs args, TVMRetValue* rv) {
  *rv = args[0].type_code();
});
// As a function of a session passed its arguments on, with one more in front.
TVM_REGISTER_GLOBAL("old_idioms.pass_on").set_body([](TVMArgs args, TVMRetValue* rv) {
  PackedFunc f = args[0];
  std::vector<TVMValue> values(args.num_args);
  std::vector<int> codes(args.num_args);
  TVMArgsSetter setter(values.data(), codes.data());
  setter(0, static_cast<int>(args.size() - 1));
  for (int i = 1; i < args.num_args; ++i) {
    values[i] = args.values[i];
    codes[i] = args.type_codes[i];
  }
  f.CallPacked(TVMArgs(values.data(), codes.data(), args.num_args), rv);
});
TVM_REGISTER_GLOBAL("old_idioms.drop_first").set_body([](TVMArgs args, TVMRetValue* rv) {
  PackedFunc f = args[0];
  f.CallPacked(TVMArgs(args.values + 1, args.type_codes + 1, args.num_args - 1), rv);
});

PackedFunc Global(const std::string& name) { return *Registry::Get(name); }
PackedFunc Get(const std::string& name) { return *Registry::Get("old_idioms." + name); }

class NamesModule : public ModuleNode {
 public:
  TVM_MODULE_VTABLE_BEGIN("old_idioms.names");
  TVM_MODULE_VTABLE_ENTRY("length", &NamesModule::Length);
  TVM_MODULE_VTABLE_END_WITH_DEFAULT(&NamesModule::Default);

 private:
  int Length(const std::string& name) { return static_cast<int>(name.size()); }
  PackedFunc Default(const String& name) {
    if (name == "missing") return nullptr;
    return PackedFunc([name](TVMArgs, TVMRetValue* rv) { *rv = name; });
  }
};

}  // namespace

TEST(CompatMethodsAreFunctions) {
  Counter counter = Get("counter")(20);
  EXPECT_EQ(Get("count")(counter).operator int64_t(), 20);
  Get("add")(counter, 1);
  EXPECT_EQ(counter->count, 21);
  EXPECT_EQ(static_cast<int>(Get("twice")(counter)), 42);
  ExpectFFIError([] { Get("add")(nullptr, 1); }, "TypeError", "null");
  ExpectFFIError([&] { Get("add")(counter); }, "TypeError", "expected 2 arguments, got 1");
  ExpectFFIError([] { Get("twice")(1); }, "TypeError", "old_idioms.Counter");
}

TEST(CompatTypeCodes) {
  const PackedFunc code = Get("type_code");
  EXPECT_EQ(static_cast<int>(code(nullptr)), static_cast<int>(kTVMNullptr));
  EXPECT_EQ(static_cast<int>(code(1)), static_cast<int>(kDLInt));
  EXPECT_EQ(static_cast<int>(code(true)), static_cast<int>(kTVMArgInt));
  EXPECT_EQ(static_cast<int>(code(1.5)), static_cast<int>(kDLFloat));
  EXPECT_EQ(static_cast<int>(code("text")), static_cast<int>(kTVMStr));
  EXPECT_EQ(static_cast<int>(code(String("a text that is longer"))), static_cast<int>(kTVMStr));
  EXPECT_EQ(static_cast<int>(code(DataType::Int(8))), static_cast<int>(kTVMDataType));
  EXPECT_EQ(static_cast<int>(code(DLDevice{kDLCPU, 0})), static_cast<int>(kDLDevice));
  EXPECT_EQ(static_cast<int>(code(static_cast<void*>(nullptr))),
            static_cast<int>(kTVMOpaqueHandle));
  EXPECT_EQ(static_cast<int>(code(code)), static_cast<int>(kTVMPackedFuncHandle));
  EXPECT_EQ(static_cast<int>(code(Module(make_object<NamesModule>()))),
            static_cast<int>(kTVMModuleHandle));
  EXPECT_EQ(static_cast<int>(code(Counter(1))), static_cast<int>(kTVMObjectHandle));
  NDArray array = NDArray::Empty({2}, DataType::Float(32), {kDLCPU, 0});
  EXPECT_EQ(static_cast<int>(code(array)), static_cast<int>(kTVMNDArrayHandle));
  TVMRetValue result = code(1);
  EXPECT_EQ(result.type_code(), static_cast<int>(kDLInt));
}

TEST(CompatArgumentsArePassedOn) {
  std::vector<std::string> seen;
  const PackedFunc note([&](TVMArgs args, TVMRetValue* rv) {
    for (int i = 1; i < args.size(); ++i) seen.push_back(args[i].operator std::string());
    *rv = args[0];
  });
  EXPECT_EQ(static_cast<int>(Get("pass_on")(note, "a", String("a text that is longer"))), 2);
  EXPECT(seen == (std::vector<std::string>{"a", "a text that is longer"}));
  EXPECT_EQ(static_cast<int>(Get("drop_first")(note, 7, "b")), 7);
  EXPECT_EQ(seen.back(), "b");
}

TEST(CompatRegistryOverridesRemovesAndLists) {
  Registry::Register("old_idioms.changing").set_body_typed([]() { return 1; });
  EXPECT_EQ(static_cast<int>(Get("changing")()), 1);
  Registry::Register("old_idioms.changing", true).set_body_typed([]() noexcept { return 2; });
  EXPECT_EQ(static_cast<int>(Get("changing")()), 2);
  const auto listed = [] {
    for (const String& name : Registry::ListNames()) {
      if (name == "old_idioms.changing") return true;
    }
    return false;
  };
  EXPECT(listed());
  EXPECT(Registry::Remove("old_idioms.changing"));
  EXPECT(!Registry::Remove("old_idioms.changing"));
  EXPECT(!listed());
  EXPECT(Registry::Get("old_idioms.changing") == nullptr);
}

TEST(CompatModulesImport) {
  Module names(make_object<NamesModule>()), outer(make_object<NamesModule>()), none;
  EXPECT_EQ(static_cast<int>(names.GetFunction("length")("four")), 4);
  EXPECT_EQ(names.GetFunction("other")().operator std::string(), "other");
  EXPECT(outer->GetFunction("missing") == nullptr);
  EXPECT_EQ(std::string(names->type_key()), "old_idioms.names");
  outer.Import(names);
  outer->Import(Global("old_model.load")());
  EXPECT_EQ(outer->imports().size(), 2u);
  EXPECT(!outer->GetFunction("missing", true).defined());
  EXPECT(static_cast<NamesModule*>(outer.operator->()) != nullptr);
  EXPECT(!none.defined());
  ExpectFFIError([&] { none->GetFunction("length"); }, "InternalError", "the Module is null");
}

TEST(CompatDataTypes) {
  const DataType half = DataType::Float(16);
  EXPECT(half.is_float16() && half.bits() == 16 && half.bytes() == 2 && half.is_scalar());
  EXPECT(half == DataType(String2DLDataType("float16")));
  EXPECT(half != DataType::BFloat(16) && DataType::BFloat(16).is_bfloat16());
  EXPECT_EQ(DLDataType2String(DataType::Int(32, 4)), "int32x4");
  EXPECT(DataType::Bool().is_bool() && DataType::UInt(1).is_bool() && !DataType::UInt(8).is_bool());
  EXPECT(DataType().is_void() && DataType::Handle().is_handle());
  EXPECT(half.with_lanes(4).element_of() == half);
  const PackedFunc same([](TVMArgs args, TVMRetValue* rv) { *rv = args[0].operator DataType(); });
  DataType back = same("float16");
  EXPECT(back == half);
}

TEST(CompatDowncastAndOptional) {
  ObjectRef object = Counter(3);
  EXPECT_EQ(Downcast<Counter>(object)->count, 3);
  ExpectFFIError([&] { Downcast<NDArray>(object); }, "TypeError", "old_idioms.Counter");
  EXPECT(!Downcast<Counter>(ObjectRef(nullptr)).defined());
  Optional<String> name = NullOpt;
  EXPECT(!name.defined() && name.value_or("none") == "none");
  name = String("some");
  EXPECT(name.defined() && name.value() == "some");
  Registry::Register("old_idioms.has").set_body_typed([](Optional<String> a, Optional<NDArray> b) {
    return a.defined() + 2 * b.defined();
  });
  EXPECT_EQ(static_cast<int>(Get("has")(name, NDArray())), 1);
  EXPECT_EQ(
      static_cast<int>(Get("has")(nullptr, NDArray::Empty({}, DataType::Int(8), {kDLCPU, 0}))), 2);
}

TEST(CompatArraysKnowTheirShape) {
  NDArray array = NDArray::Empty({2, 3}, DataType::Float(32), DLDevice{kDLCPU, 0});
  ShapeTuple shape = array.Shape();
  EXPECT(shape->size == 2 && shape[1] == 3);
  EXPECT(array.DataType().is_float());
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  array.CopyFromBytes(values.data(), sizeof(float) * 6);
  NDArray row = array.CreateView({3}, array->dtype, 3 * sizeof(float));
  std::vector<float> read(3);
  row.CopyToBytes(read.data(), sizeof(float) * 3);
  EXPECT(read == (std::vector<float>{4, 5, 6}));
  Array<NDArray> arrays = PackedFunc([](TVMArgs args, TVMRetValue* rv) {
    Array<NDArray> all;
    for (int i = 0; i < args.size(); ++i) all.push_back(args[i]);
    *rv = all;
  })(array, row);
  EXPECT_EQ(arrays.size(), 2u);
  EXPECT(arrays[1].same_as(row));
}

TEST(CompatTypedPackedFunctions) {
  TypedPackedFunc<int(int, int)> add = [](int a, int b) { return a + b; };
  EXPECT_EQ(add(2, 3), 5);
  const PackedFunc apply([](TVMArgs args, TVMRetValue* rv) {
    TypedPackedFunc<int(int, int)> f = args[0];
    ICHECK(f != nullptr);
    *rv = f(args[1], 1);
  });
  EXPECT_EQ(static_cast<int>(apply(add, 4)), 5);
  PackedFunc packed = add;
  TypedPackedFunc<int(int, int)> again(packed);
  EXPECT_EQ(again(1, 1), 2);
  ExpectFFIError([&] { packed(int64_t{1} << 40, 1); }, "ValueError", "does not fit");
  EXPECT((TypedPackedFunc<void()>() == nullptr));
}

TEST(CompatExportsHaveTodaysSymbols) {
  // Of model_of_2024.cc, in this program itself.
  EXPECT_EQ(
      tvm::ffi::Function::InvokeExternC(nullptr, __tvm_ffi_old_model_vocab_size, 4).cast<int>(),
      10);
  EXPECT_EQ(tvm::ffi::Function::InvokeExternC(nullptr, __tvm_ffi_old_model_count, 1, 2).cast<int>(),
            2);
  ExpectFFIError(
      [] { tvm::ffi::Function::InvokeExternC(nullptr, __tvm_ffi_old_model_vocab_size, "x"); },
      "TypeError", "int");
}

TEST(CompatChecksCompare) {
  CHECK_NE(1, 2) << "equal";
  CHECK_LT(1, 2);
  CHECK_LE(1, 1);
  CHECK_GT(2, 1);
  CHECK_GE(2, 2);
  ExpectFFIError([] { CHECK_NE(1, 1) << "the same"; }, "InternalError", "the same");
  ExpectFFIError([] { ICHECK_LT(2, 1); }, "InternalError", "2 vs. 1");
}
