# The CUDA kernels, where nvcc and the CUDA runtime headers are (KVCTL_CUDA=AUTO), always (ON) or never (OFF).
# A static library of its own: libkvctl.so stays loadable on machines without CUDA.

if(NOT KVCTL_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KVCTL_CUDA must be AUTO, ON or OFF, got ${KVCTL_CUDA}")
endif()
set(kvctl_has_cuda OFF)
if(NOT KVCTL_CUDA STREQUAL "OFF")
  find_program(KVCTL_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
  find_path(KVCTL_CUDA_INCLUDE cuda_runtime.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
  if(KVCTL_NVCC AND KVCTL_CUDA_INCLUDE)
    set(kvctl_has_cuda ON)
  elseif(KVCTL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KVCTL_CUDA=ON needs nvcc (found: ${KVCTL_NVCC}) and cuda_runtime.h (found: ${KVCTL_CUDA_INCLUDE})")
  endif()
endif()
message(STATUS "CUDA kernels: ${kvctl_has_cuda} (${KVCTL_NVCC})")

if(kvctl_has_cuda)
  # nvcc is called directly: CMake's CUDA language links a test program first, which needs libraries that a machine
  # that only compiles does not have.
  set(cuda_flags -std=c++17 -O3 -Xcompiler=-fPIC,-Wall,-Wextra -Werror=all-warnings
      -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90)
  file(GLOB cuda_sources CONFIGURE_DEPENDS cpp/kernels/cuda/*.cu)
  file(GLOB cuda_host_sources CONFIGURE_DEPENDS cpp/kernels/cuda/*.cc)
  file(GLOB cuda_headers CONFIGURE_DEPENDS cpp/kernels/cuda/*.cuh cpp/kernels/cuda/*.h cpp/kernels/*.h cpp/core/*.h)
  set(cuda_objects "")
  foreach(source ${cuda_sources})
    get_filename_component(name "${source}" NAME_WE)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND "${CMAKE_COMMAND}" -E make_directory "${CMAKE_CURRENT_BINARY_DIR}/cuda"
      COMMAND "${KVCTL_NVCC}" ${cuda_flags} -I "${CMAKE_CURRENT_SOURCE_DIR}/cpp" -I "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include"
              -c "${source}" -o "${object}"
      DEPENDS "${source}" ${cuda_headers} VERBATIM)
    list(APPEND cuda_objects "${object}")
  endforeach()
  add_library(kvctl_cuda STATIC ${cuda_objects} ${cuda_host_sources})
  target_link_libraries(kvctl_cuda PUBLIC kvctl_kernels)
  set_target_properties(kvctl_cuda PROPERTIES LINKER_LANGUAGE CXX)
  add_custom_target(kvctl_cuda_kernels ALL DEPENDS kvctl_cuda)
endif()
