# TensorRT 10, 11 and TensorRT-RTX, each where NvInfer.h and the library lie under one prefix. The headers are compiled in;
# the library is opened at run time, and is looked for here so that the two are of one version.
# An environment variable of the same name replaces what an earlier run of CMake was given.
foreach(root ITAE_TENSORRT_ROOT ITAE_TENSORRT_RTX_ROOT)
  set(${root} "" CACHE PATH "Prefix with NvInfer.h and the library")
  if(DEFINED ENV{${root}})
    set(${root} "$ENV{${root}}" CACHE PATH "Prefix with NvInfer.h and the library" FORCE)
  endif()
endforeach()
find_path(ITAE_CUDA_INCLUDE cuda_runtime_api.h
  HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES include targets/${CMAKE_SYSTEM_PROCESSOR}-linux/include
  DOC "Folder of cuda_runtime_api.h, which NvInfer.h includes")

# Sets ${variable} to the compile options of a library's source, or to nothing where the library is left out.
function(itae_find_tensorrt variable title root library major_macro folder_macro)
  set(${variable} "" PARENT_SCOPE)
  set(prefixes "${${root}}")
  if(NOT prefixes)
    set(prefixes /usr)
  endif()
  foreach(what header library)
    unset(found_${what} CACHE)
  endforeach()
  find_path(found_header NvInferVersion.h HINTS ${prefixes} PATH_SUFFIXES include include/${CMAKE_LIBRARY_ARCHITECTURE} NO_DEFAULT_PATH)
  if(NOT found_header)
    if(${root})
      message(FATAL_ERROR "itae: ${root}=${${root}}: there is no include/NvInferVersion.h of ${title}")
    endif()
    return()
  endif()
  file(STRINGS ${found_header}/NvInferVersion.h lines REGEX "^#define +${major_macro} +[0-9]+")
  if(NOT lines)
    file(STRINGS ${found_header}/NvInferVersion.h lines REGEX "^#define +NV_TENSORRT_MAJOR +[0-9]+") # before 10.14
  endif()
  string(REGEX REPLACE "^#define +[A-Z_]+ +([0-9]+).*" "\\1" major "${lines}")
  find_path(found_library ${library}.so.${major} HINTS ${prefixes}
    PATH_SUFFIXES lib lib64 lib/${CMAKE_LIBRARY_ARCHITECTURE} NO_DEFAULT_PATH)
  if(NOT lines OR NOT found_library OR NOT ITAE_CUDA_INCLUDE)
    if(NOT lines)
      set(problem "${found_header} holds no headers of ${title}")
    elseif(NOT found_library)
      set(problem "${found_header} is of ${title} ${major}, and there is no ${library}.so.${major} in lib/ under the same prefix")
    else()
      set(problem "no cuda_runtime_api.h was found, which NvInfer.h includes: set ITAE_CUDA_INCLUDE to its folder")
    endif()
    if(${root})
      message(FATAL_ERROR "itae: ${root}=${${root}}: ${problem}")
    endif()
    message(WARNING "itae: ${title} is LEFT OUT: ${problem}")
    return()
  endif()
  message(STATUS "itae: ${title} ${major} of ${prefixes}")
  # As system headers: their warnings are NVIDIA's.
  set(${variable} -isystem ${found_header} -isystem ${ITAE_CUDA_INCLUDE} "-D${folder_macro}=\"${found_library}\"" PARENT_SCOPE)
endfunction()

itae_find_tensorrt(tensorrt_options "TensorRT" ITAE_TENSORRT_ROOT libnvinfer TRT_MAJOR_ENTERPRISE ITAE_TENSORRT_FOLDER)
itae_find_tensorrt(tensorrt_rtx_options "TensorRT-RTX" ITAE_TENSORRT_RTX_ROOT libtensorrt_rtx TRT_MAJOR_RTX
  ITAE_TENSORRT_RTX_FOLDER)
