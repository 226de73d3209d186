# oneDNN from PyPI (onednn-devel-cpu-gomp) puts its headers and library under Python's prefix.
# Optional: without it the linear layers of compiled models run on kvctl's own kernels.

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import sys; print(sys.prefix)"
  OUTPUT_VARIABLE python_prefix OUTPUT_STRIP_TRAILING_WHITESPACE)
find_path(ONEDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp
  HINTS "${python_prefix}/include" PATH_SUFFIXES include)
find_library(ONEDNN_LIBRARY dnnl
  HINTS "${python_prefix}/lib" PATH_SUFFIXES lib)
set(kvctl_has_onednn OFF)
if(ONEDNN_INCLUDE_DIR AND ONEDNN_LIBRARY)
  set(kvctl_has_onednn ON)
  add_library(onednn SHARED IMPORTED)
  set_target_properties(onednn PROPERTIES IMPORTED_LOCATION "${ONEDNN_LIBRARY}")
  target_include_directories(onednn SYSTEM INTERFACE "${ONEDNN_INCLUDE_DIR}")
endif()
message(STATUS "oneDNN plugin: ${kvctl_has_onednn} (${ONEDNN_LIBRARY})")
