// "kvctl.runner.*": compiled model libraries.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/device.h>
#include <tvm/ffi/object.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>

#include "kvctl/function_table.h"
#include "runtime/guard.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;

/*! \brief A FunctionTable that Python can hold. */
class FunctionTableObj : public ffi::Object {
 public:
  explicit FunctionTableObj(FunctionTable value) : table(std::move(value)) {}
  FunctionTable table;

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("kvctl.FunctionTable", FunctionTableObj, ffi::Object);
};

class FunctionTableRef : public ffi::ObjectRef {
 public:
  explicit FunctionTableRef(FunctionTable table)
      : ffi::ObjectRef(ffi::make_object<FunctionTableObj>(std::move(table))) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(FunctionTableRef, ffi::ObjectRef, FunctionTableObj);
};

FunctionTableRef LoadLibrary(const ffi::String& path, DLDevice device) {
  return FunctionTableRef(FunctionTable::Load(path, device));
}

ffi::Function GetFunction(const FunctionTableRef& library, const ffi::String& name) {
  ModelFunction function = library->table.Find(name);
  if (!function) Throw(ErrorKind::kKey, function.AbsentMessage());
  return function.packed();
}

bool HasFunction(const FunctionTableRef& library, const ffi::String& name) {
  return static_cast<bool>(library->table.Find(name));
}

ffi::Array<ffi::String> FunctionNames(const FunctionTableRef& library) {
  ffi::Array<ffi::String> names;
  for (const std::string& name : library->table.names()) names.push_back(name);
  return names;
}

ffi::String LibraryMetadata(const FunctionTableRef& library) {
  return library->table.metadata_text();
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  namespace refl = tvm::ffi::reflection;
  refl::ObjectDef<FunctionTableObj>();
  refl::GlobalDef()
      .def("kvctl.runner.load_library", Guarded(LoadLibrary),
           "Load a compiled Relax library and start its virtual machine")
      .def("kvctl.runner.get_function", Guarded(GetFunction), "A library's function, by name")
      .def("kvctl.runner.has_function", Guarded(HasFunction), "Whether a library has a function")
      .def("kvctl.runner.function_names", Guarded(FunctionNames),
           "Names of the functions of a library's virtual machine")
      .def("kvctl.runner.library_metadata", Guarded(LibraryMetadata),
           "JSON text of a library's _metadata, or an empty string");
}

}  // namespace kvctl
