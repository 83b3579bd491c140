# The libraries that others keep: scripts/build-cpp installs them by the names of Debian's packages.
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto) # SHA-256
find_package(nlohmann_json 3.11 REQUIRED)
find_package(PkgConfig REQUIRED)
# By pkg-config: the CMake files of Debian's libzip ask for programs of other packages.
pkg_check_modules(libzip REQUIRED IMPORTED_TARGET GLOBAL libzip)
pkg_check_modules(libjpeg REQUIRED IMPORTED_TARGET GLOBAL libjpeg)
pkg_check_modules(libpng REQUIRED IMPORTED_TARGET GLOBAL libpng)
pkg_check_modules(libwebp REQUIRED IMPORTED_TARGET GLOBAL libwebpdemux libwebp)
find_package(ZLIB REQUIRED)
if(ITAE_COMMAND)
  find_package(CLI11 REQUIRED)
endif()
if(ITAE_TESTS)
  find_package(Catch2 2 REQUIRED)
endif()

# Headers alone: the library is opened at run time, in whichever version is there.
find_path(ITAE_ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h
  HINTS ${CMAKE_CURRENT_SOURCE_DIR}/../../build/onnxruntime/usr/include
  PATH_SUFFIXES onnxruntime
  DOC "Folder of onnxruntime_cxx_api.h")
if(NOT ITAE_ONNXRUNTIME_INCLUDE)
  message(WARNING "itae: no onnxruntime_cxx_api.h was found: the ONNX Runtime backend is LEFT OUT. "
    "scripts/build-cpp fetches the headers; or set ITAE_ONNXRUNTIME_INCLUDE to their folder.")
endif()
