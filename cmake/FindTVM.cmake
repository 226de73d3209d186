# Finds TVM and tvm-ffi through Python: the PyPI wheel (apache-tvm) and MLC's (mlc-ai-nightly-*) have one layout.
# Defines tvm::runtime, TVM_VERSION, TVM_FFI_VERSION, and TVM_RUNTIME_BUILD_ID / TVM_FFI_BUILD_ID (GNU build-ids, hex).

if(NOT DEFINED KVCTL_TVM_SHIM)
  set(KVCTL_TVM_SHIM "${CMAKE_CURRENT_LIST_DIR}/../third_party/tvm_shim")
endif()
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/locate_tvm.py"
  OUTPUT_VARIABLE tvm_facts OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_VARIABLE tvm_error RESULT_VARIABLE tvm_status)
if(NOT tvm_status EQUAL 0)
  message(FATAL_ERROR "kvctl is built against TVM and could not find it with ${Python_EXECUTABLE}:\n${tvm_error}")
endif()
list(GET tvm_facts 0 TVM_ROOT)
list(GET tvm_facts 1 TVM_VERSION)
list(GET tvm_facts 2 TVM_RUNTIME_BUILD_ID)
list(GET tvm_facts 3 TVM_FFI_BUILD_ID)
list(GET tvm_facts 4 TVM_FFI_ROOT)
list(GET tvm_facts 5 TVM_FFI_VERSION)
# The cache interface that libkvctl.so implements. Another release has other virtual methods, which the compiler reports
# as errors in kvctl's headers.
if(NOT TVM_VERSION MATCHES "^0\\.27\\.")
  message(FATAL_ERROR
    "kvctl is written for TVM 0.27, and ${Python_EXECUTABLE} has TVM ${TVM_VERSION} at ${TVM_ROOT}, whose cache "
    "interface is another: pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1")
endif()
if(NOT EXISTS "${TVM_ROOT}/src/runtime/vm/kv_state.h")
  message(FATAL_ERROR
    "TVM ${TVM_VERSION} at ${TVM_ROOT} does not ship src/runtime/vm/kv_state.h, which declares the cache interface "
    "that kvctl implements. Use the apache-tvm wheel pinned in third_party/requirements/build.txt.")
endif()
message(STATUS "TVM ${TVM_VERSION} at ${TVM_ROOT} (build-id ${TVM_RUNTIME_BUILD_ID})")

add_library(tvm_runtime_imported SHARED IMPORTED)
set_target_properties(tvm_runtime_imported PROPERTIES IMPORTED_LOCATION "${TVM_ROOT}/lib/libtvm_runtime.so")
add_library(tvm_ffi_imported SHARED IMPORTED)
set_target_properties(tvm_ffi_imported PROPERTIES IMPORTED_LOCATION "${TVM_FFI_ROOT}/lib/libtvm_ffi.so")
add_library(tvm_runtime_interface INTERFACE)
# SYSTEM: TVM's headers warn.
target_include_directories(tvm_runtime_interface SYSTEM INTERFACE
  "${TVM_ROOT}/include" "${TVM_ROOT}/src" "${TVM_FFI_ROOT}/include"
  "${TVM_FFI_ROOT}/3rdparty/dlpack/include" "${KVCTL_TVM_SHIM}")
target_link_libraries(tvm_runtime_interface INTERFACE tvm_runtime_imported tvm_ffi_imported)
add_library(tvm::runtime ALIAS tvm_runtime_interface)
