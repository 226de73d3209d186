# The CUDA kernels and what launches them, where nvcc and the CUDA runtime are (KVCTL_CUDA=AUTO), always (ON) or never
# (OFF). A library of its own, libkvctl_cuda.so, that libkvctl.so opens when a CUDA device is asked for, so that
# libkvctl.so loads on machines without CUDA.

if(NOT KVCTL_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "KVCTL_CUDA must be AUTO, ON or OFF, got ${KVCTL_CUDA}")
endif()
set(kvctl_has_cuda OFF)
if(NOT KVCTL_CUDA STREQUAL "OFF")
  find_program(KVCTL_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
  find_path(KVCTL_CUDA_INCLUDE cuda_runtime.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES include)
  find_library(KVCTL_CUDART cudart HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES lib64 lib)
  if(KVCTL_NVCC AND KVCTL_CUDA_INCLUDE AND KVCTL_CUDART)
    set(kvctl_has_cuda ON)
  elseif(KVCTL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KVCTL_CUDA=ON needs nvcc (found: ${KVCTL_NVCC}), cuda_runtime.h (found: ${KVCTL_CUDA_INCLUDE}) "
                        "and libcudart (found: ${KVCTL_CUDART})")
  endif()
endif()
message(STATUS "CUDA kernels: ${kvctl_has_cuda} (${KVCTL_NVCC})")

if(kvctl_has_cuda)
  # nvcc is called directly: CMake's CUDA language links a test program first, which needs libraries that a machine
  # that only compiles does not have.
  set(cuda_flags -std=c++17 -O3 -lineinfo -Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden -Werror=all-warnings)
  # Those that nvcc knows, and the PTX of 9.0, from which a driver compiles for every later GPU. A list of one shortens
  # the build while kernels are written.
  set(KVCTL_CUDA_ARCHITECTURES 80 90 100 120 CACHE STRING "GPU architectures of the CUDA kernels")
  execute_process(COMMAND "${KVCTL_NVCC}" --list-gpu-code OUTPUT_VARIABLE nvcc_architectures)
  set(cuda_architectures "")
  foreach(architecture ${KVCTL_CUDA_ARCHITECTURES})
    if(nvcc_architectures MATCHES "sm_${architecture}[^0-9a-z]")
      list(APPEND cuda_architectures ${architecture})
      list(APPEND cuda_flags "-gencode=arch=compute_${architecture},code=sm_${architecture}")
    endif()
  endforeach()
  list(FIND cuda_architectures 90 has_sm_90)
  if(NOT has_sm_90 EQUAL -1)
    list(APPEND cuda_flags -gencode=arch=compute_90,code=compute_90)
  endif()
  if(NOT cuda_architectures)
    message(FATAL_ERROR "${KVCTL_NVCC} knows none of the architectures ${KVCTL_CUDA_ARCHITECTURES}")
  endif()
  message(STATUS "CUDA architectures: ${cuda_architectures}, PTX of 9.0 if among them")
  file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS cpp/kernels/cuda/*.cu)
  file(GLOB_RECURSE cuda_host_sources CONFIGURE_DEPENDS cpp/kernels/cuda/*.cc)
  list(FILTER cuda_host_sources EXCLUDE REGEX "/plugin\\.cc$")
  file(GLOB_RECURSE cuda_headers CONFIGURE_DEPENDS cpp/kernels/cuda/*.cuh cpp/kernels/cuda/*.h cpp/core/*.h
       cpp/include/kvctl/*.h)
  file(GLOB kernel_headers CONFIGURE_DEPENDS cpp/kernels/*.h)
  set(cuda_objects "")
  foreach(source ${cuda_sources})
    get_filename_component(name "${source}" NAME_WE)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o")
    set(source_flags "")
    if(source MATCHES "/cuda/verify/")
      # The decisions of the CPU, bit for bit: no multiplication is fused with an addition but where the source says so.
      set(source_flags -fmad=false --expt-relaxed-constexpr)
    endif()
    add_custom_command(
      OUTPUT "${object}"
      COMMAND "${CMAKE_COMMAND}" -E make_directory "${CMAKE_CURRENT_BINARY_DIR}/cuda"
      COMMAND "${KVCTL_NVCC}" ${cuda_flags} ${source_flags} -I "${CMAKE_CURRENT_SOURCE_DIR}/cpp"
              -I "${CMAKE_CURRENT_SOURCE_DIR}/cpp/include" -c "${source}" -o "${object}"
      DEPENDS "${source}" ${cuda_headers} ${kernel_headers} VERBATIM)
    list(APPEND cuda_objects "${object}")
  endforeach()
  add_library(kvctl_cuda_kernels STATIC ${cuda_objects} ${cuda_host_sources})
  target_include_directories(kvctl_cuda_kernels SYSTEM PUBLIC "${KVCTL_CUDA_INCLUDE}")
  target_link_libraries(kvctl_cuda_kernels PUBLIC kvctl_kernels room_kernels_cuda_headers "${KVCTL_CUDART}")
  set_target_properties(kvctl_cuda_kernels PROPERTIES LINKER_LANGUAGE CXX)
  add_library(kvctl_cuda MODULE cpp/kernels/cuda/plugin.cc)
  target_link_libraries(kvctl_cuda PRIVATE kvctl_cuda_kernels)
  install(TARGETS kvctl_cuda LIBRARY DESTINATION lib)
endif()
