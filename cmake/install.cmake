# SPDX-License-Identifier: Apache-2.0
# Install rules: the headers, two export sets and the package files for find_package(adore).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(adore_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/adore)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS adore EXPORT adore_targets)
install(EXPORT adore_targets NAMESPACE adore:: DESTINATION ${adore_package_dir})
if(TARGET adore_gpu)
  install(TARGETS adore_gpu EXPORT adore_gpu_targets)
  install(EXPORT adore_gpu_targets NAMESPACE adore:: DESTINATION ${adore_package_dir})
endif()

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/adore-config.cmake.in ${PROJECT_BINARY_DIR}/adore-config.cmake
  INSTALL_DESTINATION ${adore_package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/adore-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT) # before 1.0 a minor version may break
install(FILES ${PROJECT_BINARY_DIR}/adore-config.cmake
              ${PROJECT_BINARY_DIR}/adore-config-version.cmake
        DESTINATION ${adore_package_dir})
