# oneDNN from PyPI (onednn-cpu-gomp and onednn-devel-cpu-gomp) puts its headers and library under a prefix that Python's
# package metadata knows, also inside pip's isolated build environment, where sys.prefix is another.
# Optional: without it the linear layers of compiled models run on kvctl's own kernels.

execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/locate_onednn.py"
  OUTPUT_VARIABLE onednn_prefixes OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_path(ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp
  HINTS ${onednn_prefixes} PATH_SUFFIXES include)
find_library(ONEDNN_LIBRARY dnnl
  HINTS ${onednn_prefixes} PATH_SUFFIXES lib)
set(kvctl_has_onednn OFF)
if(ONEDNN_INCLUDE_DIR AND ONEDNN_LIBRARY)
  set(kvctl_has_onednn ON)
  add_library(onednn SHARED IMPORTED)
  set_target_properties(onednn PROPERTIES IMPORTED_LOCATION "${ONEDNN_LIBRARY}")
  target_include_directories(onednn SYSTEM INTERFACE "${ONEDNN_INCLUDE_DIR}")
endif()
message(STATUS "oneDNN plugin: ${kvctl_has_onednn} (${ONEDNN_LIBRARY})")
