# find_package(kvctl) in a C++ project gives the target kvctl::kvctl: libkvctl.so, its headers, and the TVM runtime
# that it was built against. Where this file is, Python says:
#
#   cmake -B build -Dkvctl_DIR=$(python -c "import kvctl; print(kvctl.cmake_dir())")

get_filename_component(kvctl_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT Python_EXECUTABLE)
  # kvctl lies in <prefix>/lib/python3.x/site-packages: the interpreter of that prefix is the one that has its TVM.
  get_filename_component(kvctl_prefix "${kvctl_root}/../../../.." ABSOLUTE)
  if(EXISTS "${kvctl_prefix}/bin/python")
    set(Python_EXECUTABLE "${kvctl_prefix}/bin/python")
  else()
    find_package(Python REQUIRED COMPONENTS Interpreter)
  endif()
endif()

set(KVCTL_TVM_SHIM "${kvctl_root}/include/tvm_shim")
if(NOT TARGET tvm::runtime)
  include("${CMAKE_CURRENT_LIST_DIR}/FindTVM.cmake")
endif()
file(READ "${kvctl_root}/lib/build_info.json" kvctl_build_info)
string(JSON kvctl_VERSION GET "${kvctl_build_info}" kvctl)
string(JSON kvctl_tvm_version GET "${kvctl_build_info}" tvm)
string(JSON kvctl_tvm_build_id GET "${kvctl_build_info}" tvm_runtime_build_id)
if(NOT kvctl_tvm_build_id STREQUAL TVM_RUNTIME_BUILD_ID)
  set(kvctl_FOUND FALSE)
  set(kvctl_NOT_FOUND_MESSAGE
    "kvctl ${kvctl_VERSION} was compiled against TVM ${kvctl_tvm_version}, but ${Python_EXECUTABLE} has TVM "
    "${TVM_VERSION}: set Python_EXECUTABLE to the interpreter that kvctl was installed with")
  return()
endif()

if(NOT TARGET kvctl::kvctl)
  add_library(kvctl::kvctl SHARED IMPORTED)
  set_target_properties(kvctl::kvctl PROPERTIES IMPORTED_LOCATION "${kvctl_root}/lib/libkvctl.so")
  target_include_directories(kvctl::kvctl INTERFACE "${kvctl_root}/include")
  target_compile_features(kvctl::kvctl INTERFACE cxx_std_17)
  target_link_libraries(kvctl::kvctl INTERFACE tvm::runtime)
  # DT_RPATH, unlike DT_RUNPATH, also serves what libkvctl.so itself needs (TVM) and opens (oneDNN, in lib).
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sys; print(sys.prefix)"
                  OUTPUT_VARIABLE kvctl_prefix OUTPUT_STRIP_TRAILING_WHITESPACE)
  target_link_options(kvctl::kvctl INTERFACE LINKER:--disable-new-dtags "LINKER:-rpath,${TVM_ROOT}/lib"
                      "LINKER:-rpath,${TVM_FFI_ROOT}/lib" "LINKER:-rpath,${kvctl_prefix}/lib")
endif()
set(kvctl_FOUND TRUE)
