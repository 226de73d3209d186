#include "kvctl/function_table.h"

#include <tvm/ffi/string.h>
#include <tvm/runtime/memory/memory_manager.h>
#include <tvm/runtime/vm/executable.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "core/support/elf_file.h"
#include "kvctl/error.h"
#include "runtime/support/json.h"

namespace kvctl {

namespace ffi = tvm::ffi;
using tvm::runtime::vm::VMExecutable;
using tvm::runtime::vm::VMFuncInfo;

struct ModelLibrary {
  std::string path;
  DLDevice device;
  ffi::Module machine;
  std::vector<std::string> names;
  std::string metadata_text;
  ffi::json::Object metadata;
};

namespace {

std::string Join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

ffi::Module OpenLibrary(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) {
    Throw(ErrorKind::kFileNotFound, "there is no model library ", path);
  }
  CheckElfFile(path);
  // The dynamic linker looks along its search path for a name without a slash.
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  try {
    ffi::Module module = ffi::Module::LoadFromFile(file);
    if (std::string(module->kind()) == "relax.VMExecutable") return module;
  } catch (const ffi::Error& error) {
    Throw(ErrorKind::kValue, "cannot load the model library ", path, ": ", error.message());
  }
  Throw(ErrorKind::kValue, path, " is a library, but not one that Relax compiled for its virtual ",
        "machine");
}

std::vector<std::string> ExportedNames(const ffi::Module& module) {
  std::vector<std::string> names;
  const auto* executable = static_cast<const VMExecutable*>(module.get());
  for (const VMFuncInfo& function : executable->func_table) {
    if (function.kind != VMFuncInfo::FuncKind::kPackedFunc) names.push_back(function.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

ffi::Module StartMachine(const ffi::Module& module, const std::string& path, DLDevice device) {
  constexpr int kPooled = tvm::runtime::memory::AllocatorType::kPooled;
  try {
    auto machine = (*module->GetFunction("vm_load_executable"))().cast<ffi::Module>();
    const ffi::Function start = machine->GetFunction("vm_initialization").value();
    start(static_cast<int>(device.device_type), device.device_id, kPooled, static_cast<int>(kDLCPU),
          0, kPooled);
    return machine;
  } catch (const ffi::Error& error) {
    Throw(ErrorKind::kRuntime, "the virtual machine of ", path,
          " does not start: ", error.message());
  }
}

// The machine is asked only for functions of its own: for a name that its bytecode calls but does
// not define, it throws instead of looking further.
std::optional<ffi::Function> Lookup(const ModelLibrary& library, const std::string& name) {
  ffi::Optional<ffi::Function> found;
  if (std::binary_search(library.names.begin(), library.names.end(), name)) {
    found = library.machine->GetFunction(name);
  } else {
    for (const ffi::Any& imported : library.machine->imports()) {
      found = imported.cast<ffi::Module>()->GetFunction(name, true);
      if (found.has_value() && *found != nullptr) break;
    }
  }
  if (!found.has_value() || *found == nullptr) return std::nullopt;
  return *found;
}

}  // namespace

std::string ModelFunction::AbsentMessage() const {
  if (library_ == nullptr) return "no model library was loaded";
  return "the model library " + library_->path + " does not export '" + name_ + "'; it exports " +
         Join(library_->names);
}

void ModelFunction::ThrowAbsent() const { Throw(ErrorKind::kNotImplemented, AbsentMessage()); }

FunctionTable FunctionTable::Load(const std::string& path, DLDevice device) {
  const ffi::Module module = OpenLibrary(path);
  auto library = std::make_shared<ModelLibrary>(ModelLibrary{
      path, device, StartMachine(module, path, device), ExportedNames(module), "", {}});
  if (auto describe = Lookup(*library, "_metadata")) {
    library->metadata_text = (*describe)().cast<ffi::String>();
    library->metadata = ParseJsonObject(library->metadata_text, "_metadata of " + path);
  }

  FunctionTable table;
  table.library_ = library;
  table.embed = table.Find("embed");
  table.prefill = table.Find("prefill");
  table.decode = table.Find("decode");
  table.batch_prefill = table.Find("batch_prefill");
  table.batch_decode = table.Find("batch_decode");
  table.batch_verify = table.Find("batch_verify");
  table.create_paged_kv_cache = table.Find("create_flashinfer_paged_kv_cache");
  if (ModelFunction tir = table.Find("create_tir_paged_kv_cache")) {
    table.create_paged_kv_cache = tir;
  }
  table.create_rnn_state = table.Find("create_rnn_state");
  return table;
}

ModelFunction FunctionTable::Find(const std::string& name) const {
  ModelFunction function;
  function.name_ = name;
  function.library_ = library_;
  if (auto found = Lookup(*library_, name)) function.function_ = *found;
  return function;
}

const std::vector<std::string>& FunctionTable::names() const { return library_->names; }
const ffi::json::Object& FunctionTable::metadata() const { return library_->metadata; }
const std::string& FunctionTable::metadata_text() const { return library_->metadata_text; }
const std::string& FunctionTable::path() const { return library_->path; }
DLDevice FunctionTable::device() const { return library_->device; }

void FunctionTable::Instrument(const ffi::Function& callback) const {
  library_->machine->GetFunction("set_instrument").value()(callback);
}

}  // namespace kvctl
