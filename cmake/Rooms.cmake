# kvctl_room(<folder> [USES <folder> ...] [LINKS <target> ...] [INSIDE <subfolder> ...] [HEADERS])
#
# A folder of cpp/ as a target of its own: kvctl_room(core/mask USES core/cache) makes room_core_mask, an object library
# of cpp/core/mask/*.cc. It sees the headers of the rooms that it uses, and of those that they use, and no others: each
# room's headers are reached through links in the build folder, so that an include of another room does not compile.
# scripts/check_layers.py reads these calls, too: a room may include only what it names here.
# INSIDE names subfolders that are no rooms of their own; with HEADERS the sources are compiled by another target.
# Kernels for one instruction set (*_baseline.cc, *_avx2.cc, *_avx512.cc, *_vnni.cc, *_amx.cc) and the oneDNN plugin are compiled elsewhere.
function(kvctl_room folder)
  cmake_parse_arguments(room "HEADERS" "" "USES;LINKS;INSIDE" ${ARGN})
  string(REPLACE "/" "_" name "room_${folder}")
  set(source_dir "${PROJECT_SOURCE_DIR}/cpp/${folder}")
  set(view "${PROJECT_BINARY_DIR}/rooms/${name}")
  file(REMOVE_RECURSE "${view}")
  file(MAKE_DIRECTORY "${view}/${folder}")
  file(GLOB headers RELATIVE "${source_dir}" CONFIGURE_DEPENDS "${source_dir}/*.h" "${source_dir}/*.cuh")
  foreach(entry ${headers} ${room_INSIDE})
    file(CREATE_LINK "${source_dir}/${entry}" "${view}/${folder}/${entry}" SYMBOLIC)
  endforeach()

  add_library(${name}_headers INTERFACE)
  target_include_directories(${name}_headers INTERFACE "${view}")
  target_link_libraries(${name}_headers INTERFACE kvctl_options kvctl_public_headers ${room_LINKS})
  foreach(used ${room_USES})
    string(REPLACE "/" "_" used_name "room_${used}")
    target_link_libraries(${name}_headers INTERFACE ${used_name}_headers)
  endforeach()

  file(GLOB sources CONFIGURE_DEPENDS "${source_dir}/*.cc")
  list(FILTER sources EXCLUDE REGEX "_(baseline|avx2|avx512|vnni|amx|onednn)\\.cc$")
  if(sources AND NOT room_HEADERS)
    add_library(${name} OBJECT ${sources})
    target_link_libraries(${name} PRIVATE ${name}_headers)
  endif()
endfunction()

# kvctl_house(<target> <folder> ...): puts rooms together in one library, and hands on all of their headers.
function(kvctl_house target)
  foreach(folder ${ARGN})
    string(REPLACE "/" "_" name "room_${folder}")
    target_link_libraries(${target} PUBLIC ${name}_headers)
    if(TARGET ${name})
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${name}>)
    endif()
  endforeach()
endfunction()
