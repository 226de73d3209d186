/*!
 * \file openmp/openmp_wait.h
 * \brief How OpenMP's threads wait for work, chosen before libgomp reads its settings.
 */
#ifndef KVCTL_OPENMP_OPENMP_WAIT_H_
#define KVCTL_OPENMP_OPENMP_WAIT_H_

namespace kvctl {

/*! \brief Whether kvctl could choose how OpenMP's threads wait. */
enum class OpenMPWait {
  kUser,     //!< the environment had chosen already
  kChosen,   //!< kvctl chose a short spin, and libgomp reads it
  kTooLate,  //!< libgomp had read its settings before libkvctl.so was loaded
};

/*! \brief What happened when libkvctl_openmp.so was loaded. */
__attribute__((visibility("default"))) OpenMPWait OpenMPWaitSetting();

}  // namespace kvctl

#endif  // KVCTL_OPENMP_OPENMP_WAIT_H_
