# What every target of ours is compiled with.
function(itae_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Werror)
  # The bits must be those of Python's arithmetic: no multiplication and addition merged into one rounding.
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  if(ITAE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${ITAE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      # Instrumented code of the standard library (std::regex) looks uninitialised to GCC; the release build looks too.
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${ITAE_SANITIZE})
  endif()
endfunction()
