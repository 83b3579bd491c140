# `find_package(itae)` in other projects; what the library is made of is its own affair and is not asked for there.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS itae EXPORT itae-targets)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT itae-targets NAMESPACE itae:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/itae)
configure_package_config_file(cmake/itaeConfig.cmake.in itaeConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/itae)
write_basic_package_version_file(itaeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/itaeConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/itaeConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/itae)
if(TARGET itae-embed)
  install(TARGETS itae-embed)
endif()
